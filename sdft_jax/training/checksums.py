"""Checksums of a checkpoint: sizes and CRC-32 of its files, committed with it and verified before a restore.

Orbax and TensorStore detect missing and truncated files, but not flipped bytes in the chunks of arrays: of 12
such checkpoints, 12 were restored with wrong values and no error.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from sdft_jax.errors import SdftError
from sdft_jax.files import is_regular, read_json

MANIFEST = "manifest.json"
_WRITTEN_LATER = {MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}
"""Top-level files that Orbax writes after the manifest; a restore does not need them."""
_BLOCK = 1 << 24


def seal(directory: epath.Path) -> None:
    """Write the manifest of the checkpoint that Orbax is about to commit; Orbax calls it in its thread."""
    for checkpoint in directory.iterdir():
        if checkpoint.name[0].isdigit() and not (checkpoint / MANIFEST).exists():
            seal_directory(checkpoint)


def seal_directory(directory: epath.Path) -> None:
    """Write the manifest of all files of a directory."""
    names = _files(directory)
    with ThreadPoolExecutor(4) as pool:
        sums = pool.map(lambda name: _size_and_crc(directory / name), names)
        text = json.dumps(dict(zip(names, sums, strict=True)))
    (directory / MANIFEST).write_text(text)


def damage(checkpoint: epath.Path) -> str | None:
    """Return the first problem with the files of a sealed directory (missing, wrong size, changed bytes), or
    None.
    """
    try:
        if not (checkpoint / MANIFEST).exists():
            return f"{MANIFEST} is missing"
        return _first_difference(checkpoint, read_json(checkpoint / MANIFEST, "restore it"))
    except (OSError, SdftError, ValueError, TypeError) as error:
        return f"{MANIFEST} or a file in it cannot be read ({error})"


def _files(directory: epath.Path, prefix: str = "") -> list[str]:
    """Return the relative names of all files below; epath has no recursive glob."""
    names: list[str] = []
    for path in sorted(directory.iterdir()):
        name = prefix + path.name
        if path.is_dir():
            names += _files(path, name + "/")
        elif name not in _WRITTEN_LATER:
            names.append(name)
    return names


def _size_and_crc(path: epath.Path) -> tuple[int, int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def _first_difference(checkpoint: epath.Path, expected: Mapping[str, Sequence[int]]) -> str | None:
    for name, (size, _) in expected.items():
        path = checkpoint / name
        if not is_regular(path):
            return f"{name} is missing"
        if path.stat().length != size:
            return f"{name} has {path.stat().length} bytes instead of the {size} that were written"
    with ThreadPoolExecutor(4) as pool:
        sums = pool.map(lambda name: _size_and_crc(checkpoint / name), expected)
        for (name, (_, crc)), (_, now) in zip(expected.items(), sums, strict=True):
            if now != crc:
                return f"the bytes of {name} have changed"
    return None
