"""Checksums detect every damaged file of a directory, and name it."""

import json
import os
import zlib

import pytest
from etils import epath

from sdft_jax.training import checksums
from sdft_jax.training.checksums import damage, seal_directory

FILES = {
    "state/d/array": b"0123456789" * 10,
    "state/index": b"index",
    "data/metadata": b"{}",
    "empty": b"",
}


@pytest.fixture
def sealed(tmp_path):
    """A sealed directory of four files."""
    directory = epath.Path(tmp_path / "sealed")
    for name, content in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    seal_directory(directory)
    return directory


def test_manifest_has_size_and_crc_32_of_every_file(sealed):
    manifest = json.loads((sealed / "manifest.json").read_text())
    assert manifest == {name: [len(content), zlib.crc32(content)] for name, content in FILES.items()}
    assert damage(sealed) is None


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_named(sealed, name):
    file, content = sealed / name, FILES[name]
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        file.write_bytes(bytes(flipped))
        assert damage(sealed) == f"the bytes of {name} have changed"
    for other in (content + b"x", *([content[:-1]] if content else [])):
        file.write_bytes(other)
        assert (
            damage(sealed) == f"{name} has {len(other)} bytes instead of the {len(content)} that were written"
        )
    os.remove(file)
    assert damage(sealed) == f"{name} is missing"
    file.write_bytes(content)
    assert damage(sealed) is None


def test_file_of_several_blocks(sealed, tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_BLOCK", 7)
    assert damage(sealed) is None
    content = bytearray(FILES["state/d/array"])
    content[-1] ^= 1
    (sealed / "state/d/array").write_bytes(bytes(content))
    assert damage(sealed) == "the bytes of state/d/array have changed"


def test_damaged_manifest_is_reported(sealed):
    manifest = sealed / "manifest.json"
    for text in ("", '{"state/ind', "[1, 2]", '{"empty": 3}', '{"empty": [1]}', "\x00", '"text"'):
        manifest.write_text(text)
        assert damage(sealed).startswith("manifest.json or a file in it cannot be read (")
    os.remove(manifest)
    assert damage(sealed) == "manifest.json is missing"
