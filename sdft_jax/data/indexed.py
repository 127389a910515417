"""A sequence whose items are made on access, so that the length of a source does not matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, eq=False)
class Indexed(Sequence[Item], Generic[Item]):
    """A sequence that makes an item whenever it is accessed, and keeps none.

    >>> squares = Indexed(4, lambda index: index**2)
    >>> squares[3], squares[-1], squares[:2], list(squares)
    (9, 9, [0, 1], [0, 1, 4, 9])
    """

    size: int
    """Number of items."""
    make: Callable[[int], Item]
    """Returns the item at an index, from 0 to size - 1."""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        chosen = range(self.size)[index]
        return [self.make(one) for one in chosen] if isinstance(chosen, range) else self.make(chosen)


def spread(size: int, count: int) -> list[int]:
    """Return `count` indices, evenly spread over those of a sequence; all of them if it is not longer.

    >>> spread(10, 4), spread(3, 4)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, size - 1, min(size, count)).astype(int).tolist() if size else []
