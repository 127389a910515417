"""Lines of plain and compressed files, each read on access."""

import gzip
import os
import tempfile

import pyarrow
import pytest

from sdft_jax.errors import SdftError
from sdft_jax.files import lines
from sdft_jax.files.lines import Lines

CODECS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "zstd": lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True),
}
TEXT = "a\r\n\né\u2028b\nlast".encode()


def open_lines(file, content):
    file.write_bytes(content)
    return Lines(file, file.name, "give another one")


@pytest.fixture(params=CODECS)
def compress(request):
    return CODECS[request.param]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n \n\n\t\n"])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 22])
def test_lines_are_those_of_the_text_without_blank_ones_at_the_end(
    tmp_path, compress, end, chunk, monkeypatch
):
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    opened = open_lines(tmp_path / "a", compress(TEXT + end))
    assert list(opened) == TEXT.split(b"\n")
    assert (opened[-1], opened[1:3]) == (b"last", TEXT.split(b"\n")[1:3])
    with pytest.raises(IndexError):
        opened[4]


@pytest.mark.parametrize("text", [b"", b"\n", b" \n\n"])
def test_file_without_text_has_no_lines(tmp_path, compress, text):
    assert list(open_lines(tmp_path / "a", compress(text))) == []


def test_parts_of_a_compressed_file_are_joined(tmp_path, compress):
    assert list(open_lines(tmp_path / "a", compress(b"a\nb") + compress(b"c\nd"))) == [b"a", b"bc", b"d"]


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("kept", [4, 12, -1])
def test_truncated_file_is_named(tmp_path, codec, kept):
    whole = CODECS[codec](bytes(range(256)) * 40)
    with pytest.raises(
        SdftError, match=rf"^a is not a complete {codec} file \(.+\): copy or compress it again"
    ):
        open_lines(tmp_path / "a", whole[:kept])


def test_file_that_is_replaced_or_truncated_later(tmp_path):
    opened = open_lines(tmp_path / "a", b"old\nline")
    (tmp_path / "b").write_bytes(b"new\nline")
    (tmp_path / "b").rename(tmp_path / "a")
    assert opened[0] == b"old"
    opened = open_lines(tmp_path / "a", b"old\nline")
    os.truncate(tmp_path / "a", 5)
    with pytest.raises(EOFError, match="shorter"):
        opened[1]


def test_file_that_cannot_be_read(tmp_path):
    (tmp_path / "directory").mkdir()
    for name, problem in (("none", "does not exist"), ("directory", "is a directory")):
        with pytest.raises(SdftError, match=rf"{name} {problem}: give another one"):
            Lines(tmp_path / name, name, "give another one")


def test_line_that_is_too_long_for_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LARGEST", 3)
    opened = open_lines(tmp_path / "a", b"abc\nabcd\n")
    assert opened[0] == b"abc"
    with pytest.raises(ValueError, match="it has 4 bytes, more than the maximum of 3"):
        opened[1]
    monkeypatch.setattr(lines, "_LARGEST", 8)
    with pytest.raises(SdftError, match=r"^a has 9 bytes, more than the maximum of 8: give another one"):
        open_lines(tmp_path / "a", b"abc\nabcd\n")


def test_no_space_for_the_decompressed_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(
        SdftError, match=r"none cannot be written \(.*\): set TMPDIR to .* decompressed a\.gz"
    ):
        open_lines(tmp_path / "a.gz", gzip.compress(b"a"))


def test_descriptors_are_closed(tmp_path, compress):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        open_lines(tmp_path / "a", compress(b"a\nb"))
    assert len(os.listdir("/proc/self/fd")) == before
