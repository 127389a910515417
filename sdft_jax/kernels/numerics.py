"""The settings of JAX that change the results of a program, with the values that the library requires."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

# before jax 0.8, it is in jax.experimental only
_enable_x64 = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64


@contextlib.contextmanager
def numerics(matmul_precision: str | None = "float32") -> Iterator[None]:
    """Trace and run programs that are the same under every setting of the process or its environment.

    For example, with `JAX_ENABLE_X64=1` a program would have 64-bit indices and constants, and without
    `jax_threefry_partitionable` other random numbers. A function that is part of a larger program
    enters this context inside; whoever starts a program enters it outside too, because loops get their
    counters when the traced program is lowered.

    Args:
        matmul_precision: the precision of float32 matrix products; None for the platform's default, which is
            lower on TPU and GPU.
    """
    with (
        _enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.threefry_partitionable(True),
        jax.default_matmul_precision(matmul_precision),
    ):
        yield


@dataclasses.dataclass(frozen=True)
class Program:
    """A function from `jax.jit` that is traced, compiled and run under `numerics`."""

    jitted: Any

    def __call__(self, *arguments: Any) -> Any:
        """Return the result of the function."""
        with numerics():
            return self.jitted(*arguments)

    def trace(self, *arguments: Any) -> jax.stages.Traced:
        """Return the traced program for these arguments, which may be shapes."""
        with numerics():
            return self.jitted.trace(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Return the lowered program for these arguments, which may be shapes."""
        with numerics():
            return self.jitted.lower(*arguments)


def bits(dtype: Any) -> int:
    """Return the number of bits of an integer or floating dtype; NumPy stores the 4 of uint4 in a byte."""
    information = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return information(dtype).bits
