"""The experts of a layer in one tensor of a file, as transformers 5 has them in memory.

A file has either a matrix [outputs, inputs] of each expert, or a stack of all. The parameters are the same: a
stack is read as views of its matrices, and written to a checkpoint whose source has one. There are three
kinds, for width M:

| stack | shape | the outputs of `gate` and `up` |
| --- | --- | --- |
| concatenated | [E, 2 M, inputs] | one after the other |
| interleaved (gpt-oss) | [E, inputs, 2 M], biases [E, 2 M] | alternate |
| MXFP4 (gpt-oss) | blocks [E, 2 M, inputs / 32, 16], scales [E, 2 M, inputs / 32] | alternate |

For example, `mlp.experts.gate_up_proj`, concatenated, [2, 6, 4], has four matrices [3, 4], of which rows 3 to
5 of number 1 are `mlp.experts.1.up_proj.weight`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sdft_jax.models.families import Mixture
from sdft_jax.models.hf.safetensors_io import Stored

_STACK = re.compile(r"(.*\bexperts)\.(gate_up_proj|down_proj)(_bias|_blocks|_scales|)")
_MATRICES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Name of a stack -> those of the matrices of an expert, in their order."""
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FP4 = np.concatenate([_FP4, -_FP4])
"""The values of the codes 0 to 15, E2M1 (OCP Microscaling Formats v1.0, section 5.3.3)."""
_PAIRS = np.stack([np.tile(_FP4, 16), np.repeat(_FP4, 16)], axis=1)
"""The two values of each byte."""
_SCALES = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan))
"""The factor of each scale, E8M0 (the same, section 5.4.1)."""


@dataclasses.dataclass(frozen=True)
class StoredMatrix(Stored):
    """One matrix of a stack, or one bias; its name and offset are those of the stack."""

    stack: Stored
    expert: int
    first: int
    """Its first output among those of its expert."""
    step: int
    """The distance of its outputs in the stack."""
    transposed: bool
    """True if the stack has inputs before outputs."""

    @property
    def place(self) -> tuple[int | slice, ...]:
        """The index of its values in the stack."""
        outputs = slice(self.first, self.first + self.step * (self.shape[0] - 1) + 1, self.step)
        return (self.expert, slice(None), outputs) if self.transposed else (self.expert, outputs)

    def map(self) -> np.ndarray:
        """Return the matrix as a view of a read-only memory map of the stack."""
        view = self.stack.map()[self.place]
        return view.T if self.transposed else view

    def samples(self, count: int) -> Iterator[np.ndarray]:
        """Yield up to `count` values of the first, the middle and the last output, as the file has them."""
        yield from _of_rows(self.map(), count)


def _of_rows(matrix: np.ndarray, count: int) -> Iterator[np.ndarray]:
    # of a matrix in a stack, a flat view would be a copy
    for row in (0, len(matrix) // 2, len(matrix) - 1):
        yield matrix[row].reshape(-1)[:count]


@dataclasses.dataclass(frozen=True)
class StoredMxfp4(StoredMatrix):
    """One matrix of a stack in MXFP4, which is read as bfloat16, without rounding.

    A byte of a block has the codes of two inputs, the first in its low half. The 32 values of a block are
    multiplied by 2 ** (scale - 127).
    """

    scales: Stored

    def map(self) -> np.ndarray:
        """Return the values of the matrix."""
        return self.part((slice(None), slice(None)))

    def part(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return the values of a part; only its blocks are read."""
        outputs, inputs = index
        start, stop, _ = inputs.indices(self.shape[1])
        first, last = start // 32, -(-stop // 32)
        codes, scales = (
            tensor.map()[self.place][outputs, first:last] for tensor in (self.stack, self.scales)
        )
        wide = _PAIRS[codes].reshape(*codes.shape[:2], 32) * _SCALES[scales][..., None]
        wide = wide.reshape(len(codes), 32 * (last - first))
        return wide[:, start - 32 * first : stop - 32 * first].astype(self.dtype)

    def samples(self, count: int) -> Iterator[np.ndarray]:
        """Yield some of the codes and of the scales."""
        for tensor in (self.stack, self.scales):
            yield from _of_rows(tensor.map()[self.place], count)


def separate(stored: Mapping[str, Stored], mixture: Mixture) -> dict[str, Stored]:
    """Return the tensors with the matrices of experts in place of stacks, by the names that files have that
    store each. A stack of an unknown shape remains.
    """
    separated: dict[str, Stored] = {}
    for name, tensor in stored.items():
        found = _STACK.fullmatch(name)
        if found and found[3] == "_scales" and f"{found[1]}.{found[2]}_blocks" in stored:
            continue
        scales = stored.get(f"{found[1]}.{found[2]}_scales") if found and found[3] == "_blocks" else None
        matrices = _matrices(tensor, found, mixture, scales) if found else None
        separated |= {name: tensor} if matrices is None else dict(matrices)
    return separated


def _matrices(
    stack: Stored, found: re.Match[str], mixture: Mixture, scales: Stored | None
) -> Iterator[tuple[str, Stored]] | None:
    """Return the names and the matrices of a stack; None if its shape is unknown."""
    prefix, kinds, ending = found[1], _MATRICES[found[2]], found[3]
    is_bias, is_coded = ending == "_bias", ending == "_blocks"
    dims = 2 if is_bias else 4 if is_coded else 3
    transposed = mixture.interleaved and dims == 3
    known = len(stack.shape) == dims and (not is_coded or _shape(scales) == stack.shape[:3])
    outputs = stack.shape[-1 if transposed or is_bias else 1] if known else 1
    if not known or outputs % len(kinds) or (not mixture.interleaved and dims != 3):
        return None
    rows = outputs // len(kinds)
    inputs = () if is_bias else (32 * stack.shape[2] if is_coded else stack.shape[1 if transposed else 2],)
    dtype = np.dtype(ml_dtypes.bfloat16) if is_coded else stack.dtype

    def matrix(expert: int, place: int) -> StoredMatrix:
        first, step = (place, len(kinds)) if mixture.interleaved else (rows * place, 1)
        common: dict[str, Any] = {"name": stack.name, "file": stack.file, "offset": stack.offset}
        common |= {"dtype": dtype, "shape": (rows, *inputs), "stack": stack}
        common |= {"expert": expert, "first": first, "step": step, "transposed": transposed}
        return StoredMxfp4(**common, scales=scales) if scales else StoredMatrix(**common)

    end = "bias" if is_bias else "weight"
    return (
        (f"{prefix}.{expert}.{kind}.{end}", matrix(expert, place))
        for expert in range(stack.shape[0])
        for place, kind in enumerate(kinds)
    )


def _shape(tensor: Stored | None) -> tuple[int, ...] | None:
    return tensor.shape if tensor else None


def stacks(layers: Iterable[int], mixture: Mixture, sizes: Mapping[str, int]) -> dict[str, Stored]:
    """Return the matrices of experts as parts of stacks in no file, by the names that `separate` gives them.

    Args:
        layers: the layers that have experts.
        mixture: the mixtures of the family, which transformers reads from stacks only.
        sizes: the sizes of the model.
    """
    prefix = next(tensor.source for tensor in mixture.parameters if tensor.per_expert).partition("*")[0]
    count, width, inputs = (sizes[letter] for letter in "EMD")
    shapes: dict[str, tuple[int, ...]] = {
        "gate_up_proj": (count, 2 * width, inputs),
        "down_proj": (count, inputs, width),
    }
    if mixture.interleaved:
        biases = {f"{name}_bias": (count, outputs) for name, (_, outputs, _) in shapes.items()}
        shapes = {name: (count, *shape[:0:-1]) for name, shape in shapes.items()} | biases
    names = {
        f"model.layers.{layer}.{prefix}{kind}": shape for layer in layers for kind, shape in shapes.items()
    }
    float32 = np.dtype("float32")
    return separate({name: Stored(name, Path(), float32, shape, 0) for name, shape in names.items()}, mixture)


def stacked(stack: Stored, parts: Sequence[StoredMatrix], matrices: Iterable[np.ndarray]) -> np.ndarray:
    """Return a stack of new matrices, in the order of `parts`."""
    out = np.empty(stack.shape, stack.dtype)
    for part, matrix in zip(parts, matrices, strict=True):
        out[part.place] = matrix.T if part.transposed else matrix
    return out
