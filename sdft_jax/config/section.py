"""The decorator of the sections of a configuration, and the types of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from sdft_jax.errors import explained

LARGEST = 2**31 - 1
"""The largest integer of a device."""
TINY, HUGE = 1e-30, 1e30
"""Bounds of positive numbers: float32 holds them, and their products with usual numbers."""


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would read true as 1
        raise PydanticCustomError("number", "give a number instead of true or false")
    return value


def _zero_or(least: float, most: float = HUGE) -> AfterValidator:
    """Return a validator that refuses other numbers than 0 and those from `least` to `most`."""

    def check(value: float) -> float:
        if value and not least <= value <= most:
            text = f"give 0, or a number from {least:g} to {most:g}"
            raise PydanticCustomError("size", "{text}", {"text": text})
        return value

    return AfterValidator(check)


_NUMBER = BeforeValidator(_refuse_bool)

Integer = Annotated[int, Field(ge=-LARGEST, le=LARGEST), _NUMBER]
Positive = Annotated[int, Field(gt=0, le=LARGEST), _NUMBER]
Count = Annotated[int, Field(ge=0, le=LARGEST), _NUMBER]
Rows = Annotated[int, Field(gt=0, le=1 << 20), _NUMBER]
"""A number of rows that are in memory at one time."""
Tokens = Annotated[int, Field(gt=0, le=1 << 24), _NUMBER]
"""A length of sequences, in tokens."""
Seed = Annotated[int, Field(ge=0, lt=2**32), _NUMBER]
Share = Annotated[float, Field(ge=0, le=1), _zero_or(TINY), _NUMBER]
PositiveShare = Annotated[float, Field(gt=0, le=1), _zero_or(TINY), _NUMBER]
Decay = Annotated[float, Field(ge=0, le=1 - 2**-20), _zero_or(TINY), _NUMBER]
"""A decay per step; 1 - decay is not 0 in float32."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), _zero_or(TINY), _NUMBER]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False), _zero_or(TINY), _NUMBER]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False), _zero_or(1e-6, 1e6), _NUMBER]
"""A divisor of logits, which are finite in float32 afterwards."""


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def section(name: str) -> Callable[[type], Any]:
    """Return a decorator for a section: a frozen dataclass with documented and validated fields.

    Args:
        name: the section's key, for error messages; empty for the whole configuration.
    """

    return lambda cls: explained(name)(
        dataclass(frozen=True, config={"extra": "forbid", "use_attribute_docstrings": True})(cls)
    )
