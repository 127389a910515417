"""Checksums detect every damaged file of a checkpoint, and name it."""

import json
import os
import zlib

import pytest
from etils import epath

from sdft_jax.training import checksums
from sdft_jax.training.checksums import damage, seal

FILES = {
    "state/d/array": b"0123456789" * 10,
    "state/index": b"index",
    "data/metadata": b"{}",
    "empty": b"",
}


@pytest.fixture
def checkpoint(tmp_path):
    """A sealed checkpoint of four files."""
    directory = epath.Path(tmp_path / "3.orbax-checkpoint-tmp-1")
    for name, content in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    seal(epath.Path(tmp_path))
    return directory


def test_manifest_has_size_and_crc_32_of_every_file(checkpoint):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest == {name: [len(content), zlib.crc32(content)] for name, content in FILES.items()}
    assert damage(checkpoint) is None


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_named(checkpoint, name):
    file, content = checkpoint / name, FILES[name]
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        file.write_bytes(bytes(flipped))
        assert damage(checkpoint) == f"the bytes of {name} have changed"
    for other in (content + b"x", *([content[:-1]] if content else [])):
        file.write_bytes(other)
        assert (
            damage(checkpoint)
            == f"{name} has {len(other)} bytes instead of the {len(content)} that were written"
        )
    os.remove(file)
    assert damage(checkpoint) == f"{name} is missing"
    file.write_bytes(content)
    assert damage(checkpoint) is None


def test_file_of_several_blocks(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_BLOCK", 7)
    assert damage(checkpoint) is None
    content = bytearray(FILES["state/d/array"])
    content[-1] ^= 1
    (checkpoint / "state/d/array").write_bytes(bytes(content))
    assert damage(checkpoint) == "the bytes of state/d/array have changed"


def test_damaged_manifest_is_reported(checkpoint):
    manifest = checkpoint / "manifest.json"
    for text in ("", '{"state/ind', "[1, 2]", '{"empty": 3}', '{"empty": [1]}', "\x00", '"text"'):
        manifest.write_text(text)
        assert damage(checkpoint).startswith("manifest.json or a file in it cannot be read (")
    os.remove(manifest)
    assert damage(checkpoint) == "manifest.json is missing"


def test_files_that_orbax_writes_after_the_manifest_are_not_in_it(checkpoint):
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (checkpoint / name).write_text("later")
    assert damage(checkpoint) is None
    os.remove(checkpoint / "manifest.json")
    seal(checkpoint.parent)
    assert json.loads((checkpoint / "manifest.json").read_text()).keys() == FILES.keys()


def test_only_checkpoints_without_a_manifest_are_sealed(checkpoint, tmp_path):
    before = (checkpoint / "manifest.json").read_bytes()
    (checkpoint / "state/index").write_bytes(b"other")
    (tmp_path / "damaged-2").mkdir()
    (tmp_path / "damaged-2" / "file").write_text("x")
    seal(epath.Path(tmp_path))
    assert (checkpoint / "manifest.json").read_bytes() == before
    assert damage(checkpoint) == "the bytes of state/index have changed"
    assert not (tmp_path / "damaged-2" / "manifest.json").exists()
