"""Checksums of a directory: sizes and CRC-32 of its files, in a manifest."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from sdft_jax.errors import SdftError
from sdft_jax.files import file_size, is_regular, read_json

MANIFEST = "manifest.json"
_BLOCK = 1 << 24


def seal_directory(directory: epath.Path) -> None:
    """Write the manifest of all files of a directory."""
    names = _files(directory)
    with ThreadPoolExecutor(4) as pool:
        sums = pool.map(lambda name: _size_and_crc(directory / name), names)
        text = json.dumps(dict(zip(names, sums, strict=True)))
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def damage(directory: epath.Path) -> str | None:
    """Return the first problem with the files of a sealed directory (missing, wrong size, changed bytes), or
    None.
    """
    try:
        if not (directory / MANIFEST).exists():
            return f"{MANIFEST} is missing"
        return _first_difference(directory, read_json(directory / MANIFEST, "restore it"))
    except (OSError, SdftError, ValueError, TypeError) as error:
        return f"{MANIFEST} or a file in it cannot be read ({error})"


def _files(directory: epath.Path, prefix: str = "") -> list[str]:
    """Return the relative names of all files below; epath has no recursive glob."""
    names: list[str] = []
    for path in sorted(directory.iterdir()):
        name = prefix + path.name
        if path.is_dir():
            names += _files(path, name + "/")
        elif name != MANIFEST:
            names.append(name)
    return names


def _size_and_crc(path: epath.Path) -> tuple[int, int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def _first_difference(directory: epath.Path, expected: Mapping[str, Sequence[int]]) -> str | None:
    for name, (size, _) in expected.items():
        path = directory / name
        if not is_regular(path):
            return f"{name} is missing"
        if file_size(path) != size:
            return f"{name} has {file_size(path)} bytes instead of the {size} that were written"
    with ThreadPoolExecutor(4) as pool:
        sums = pool.map(lambda name: _size_and_crc(directory / name), expected)
        for (name, (_, crc)), (_, now) in zip(expected.items(), sums, strict=True):
            if now != crc:
                return f"the bytes of {name} have changed"
    return None
