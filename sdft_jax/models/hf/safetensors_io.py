"""Reading safetensors files as memory maps, and writing them one tensor at a time.

A file is eight bytes with the length of a JSON header, the header, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). With memory maps every device reads only its slice of a
tensor. The header depends only on dtypes and shapes, so that a file is written without holding it in memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sdft_jax.errors import SdftError
from sdft_jax.files import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 100_000_000
"""Maximum length of a header, in bytes, as in the reference library."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """The location of one tensor in a file."""

    name: str
    """Its name in the file."""
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    """The position of its first byte in the file."""

    @property
    def code(self) -> str:
        """The name of its dtype in the file."""
        return _CODES[self.dtype]

    @property
    def bytes(self) -> int:
        """The size of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> np.ndarray:
        """Return the tensor as a read-only memory map, whose bytes are read when they are used."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)

    def part(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return a part of the tensor."""
        return self.map()[index]

    def samples(self, count: int) -> Iterator[np.ndarray]:
        """Yield `count` values from the start, the middle and the end, as the file has them."""
        values = self.map().reshape(-1)
        for start in (0, len(values) // 2, max(0, len(values) - count)):
            yield values[start : start + count]


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: those that its index lists, or the only one; [] without
    either.

    Raises:
        SdftError: the index is malformed, or there are an index and other weights.
    """
    index, single = directory / INDEX_FILE, directory / SINGLE_FILE
    if not index.exists():
        return [single] if single.exists() else []
    weight_map = read_json(index, "download it again").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise SdftError(f"{index} has no weight_map from tensors to files: download it again.")
    files = sorted(set(weight_map.values()))
    if outside := [name for name in files if Path(name).name != name]:
        raise SdftError(
            f"{index} lists {outside[0]!r}, which is not a file beside it: download the checkpoint again."
        )
    if single.exists() and files != [SINGLE_FILE]:
        raise SdftError(
            f"{directory} has both {SINGLE_FILE} and {INDEX_FILE}, which lists other files: remove the "
            "weights that do not belong to this model."
        )
    return [directory / name for name in files]


def stored_names(directory: Path) -> list[str]:
    """Return the names of the tensors of a checkpoint; [] without safetensors files."""
    return [name for file in checkpoint_files(directory) for name in read_header(file)]


def read_header(file: Path) -> dict[str, Stored]:
    """Return the tensors of one safetensors file by name; errors are those of `read_file`."""
    return read_file(file)[0]


def read_file(file: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the tensors of one safetensors file by name, and its metadata.

    Raises:
        SdftError: the file is missing, its header is invalid, a dtype is unknown, or its size differs from
            the size that the header declares.
    """
    if file.exists() and not file.is_file():  # opening a named pipe would wait for a writer
        raise SdftError(f"{file} is not a file: download the checkpoint again.")
    try:
        with file.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            size = file.stat().st_size
            if length > min(size, _LARGEST_HEADER):
                raise ValueError(f"the header has {length:,} bytes")
            header = json.loads(stream.read(length).decode("utf-8"))
        metadata = header.pop("__metadata__", None)
        start = _LENGTH.size + length
        tensors = {name: _entry(file, name, entry, start) for name, entry in header.items()}
        end = _end(tensors, start)
    except FileNotFoundError:
        raise SdftError(f"{file} is missing: download the checkpoint again.") from None
    except OSError as error:
        raise SdftError(f"{file} cannot be read ({error.strerror}): fix this.") from None
    except RecursionError:
        raise SdftError(f"{file} has no valid safetensors header (nested): download it again.") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise SdftError(f"{file} has no valid safetensors header ({error}): download it again.") from None
    if size != end:
        raise SdftError(
            f"{file} has {size:,} bytes, but its header declares {end:,}; it is truncated or corrupt: "
            "download it again."
        )
    return tensors, metadata if isinstance(metadata, dict) else {}


def _end(tensors: Mapping[str, Stored], start: int) -> int:
    """Return the end of the last tensor. Raises ValueError for gaps and overlaps: the format has none."""
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if stored.offset != start:
            raise ValueError(f"{name} begins at byte {stored.offset} instead of {start}")
        start += stored.bytes
    return start


def _entry(file: Path, name: str, entry: Mapping[str, Any], start: int) -> Stored:
    """Return one tensor of a header whose tensor bytes begin at `start`."""
    if entry["dtype"] not in DTYPES:
        raise SdftError(
            f"{file}: {name} has the unknown dtype {entry['dtype']!r}: use a checkpoint with bfloat16 or "
            "float32 weights, or download this one again."
        )
    begin, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *entry["shape"])):
        raise ValueError("offsets and shapes are not all natural numbers")
    stored = Stored(name, file, DTYPES[entry["dtype"]], tuple(entry["shape"]), start + begin)
    if stored.bytes != end - begin:
        raise ValueError(f"shape {stored.shape} does not fit {end - begin} bytes")
    return stored


def write_file(
    file: Path,
    layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    tensors: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors one by one, in the order of `layout`.

    Args:
        file: the file to create.
        layout: the dtype and shape of each tensor by name.
        tensors: the arrays in the same order; each may be freed when the next one is requested.
        metadata: strings to store beside the tensors.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    with file.open("xb") as stream:
        stream.write(_LENGTH.pack(len(text)) + text)
        for tensor, (dtype, shape) in zip(tensors, layout.values(), strict=True):
            assert (tensor.dtype, tensor.shape) == (dtype, shape)
            # Not tofile: its error on a full disk does not mention the disk.
            stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
