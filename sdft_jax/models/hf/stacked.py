"""The experts of a layer in one tensor of a file, as transformers 5 has them in memory.

A file has either a matrix [outputs, inputs] of each expert, or a stack [E, outputs, inputs], in which the
matrix of `up` follows that of `gate`. The parameters are the same: a stack is read as views of its matrices,
and written to a checkpoint whose source has one. For example, `mlp.experts.gate_up_proj`, [2, 6, 4], has four
matrices [3, 4], of which rows 3 to 5 of number 1 are `mlp.experts.1.up_proj.weight`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sdft_jax.models.families import Tensor
from sdft_jax.models.hf.safetensors_io import Stored

_STACK = re.compile(r"(.*\bexperts)\.(gate_up_proj|down_proj)")
_MATRICES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Name of a stack -> those of the matrices of an expert, in their order."""


@dataclasses.dataclass(frozen=True)
class StoredMatrix(Stored):
    """One matrix of a stack; its name and offset are those of the stack."""

    stack: Stored
    expert: int
    start: int
    """Its first row among those of its expert."""

    @property
    def place(self) -> tuple[int, slice]:
        """The index of its rows in the stack."""
        return self.expert, slice(self.start, self.start + self.shape[0])

    def map(self) -> np.ndarray:
        """Return the matrix as a view of a read-only memory map of the stack."""
        return self.stack.map()[self.place]


def separate(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return the tensors with the matrices of experts in place of stacks, by the names that files have that
    store each.
    """
    separated: dict[str, Stored] = {}
    for name, tensor in stored.items():
        found = _STACK.fullmatch(name)
        kinds = _MATRICES[found[2]] if found else ()
        if found is None or len(tensor.shape) != 3 or tensor.shape[1] % len(kinds):
            separated[name] = tensor
            continue
        experts, rows, inputs = tensor.shape[0], tensor.shape[1] // len(kinds), tensor.shape[2]
        separated |= {
            f"{found[1]}.{expert}.{kind}.weight": StoredMatrix(
                tensor.name,
                tensor.file,
                tensor.dtype,
                (rows, inputs),
                tensor.offset,
                tensor,
                expert,
                rows * place,
            )
            for expert in range(experts)
            for place, kind in enumerate(kinds)
        }
    return separated


def stacks(layers: Iterable[int], tensors: Iterable[Tensor], sizes: Mapping[str, int]) -> dict[str, Stored]:
    """Return the matrices of experts as parts of stacks in no file, by the names that `separate` gives them.

    Args:
        layers: the layers that have experts.
        tensors: the parameters of a layer's experts, of which a file may have a matrix each.
        sizes: the sizes of the model.
    """
    prefix = next(tensor.source for tensor in tensors if tensor.per_expert).partition("*")[0]
    count, width, inputs = (sizes[letter] for letter in "EMD")
    shapes = {"gate_up_proj": (count, 2 * width, inputs), "down_proj": (count, inputs, width)}
    names = {
        f"model.layers.{layer}.{prefix}{kind}": shape for layer in layers for kind, shape in shapes.items()
    }
    return separate(
        {name: Stored(name, Path(), np.dtype("float32"), shape, 0) for name, shape in names.items()}
    )


def stacked(stack: Stored, parts: Sequence[StoredMatrix], matrices: Iterable[np.ndarray]) -> np.ndarray:
    """Return a stack of new matrices, in the order of `parts`."""
    out = np.empty(stack.shape, stack.dtype)
    for part, matrix in zip(parts, matrices, strict=True):
        out[part.place] = matrix
    return out
