"""Files that others wrote: every fault is one sentence with the file and the remedy, at once."""

import os
import pwd

import pytest
from etils import epath

from sdft_jax.errors import SdftError
from sdft_jax.files.reading import (
    file_size,
    is_regular,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    read_record,
)


def test_json_with_and_without_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": "\\u00e9\\ud83d\\ude00"}', encoding="utf-8")
    assert read_json(file, "fix it") == {"a": "é😀"}
    file.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(file, "fix it") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"a"', "Expecting ':' delimiter"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
        (b'["\\ud800"]', "it contains half of a surrogate pair"),
        (b"1" * 5000, "Exceeds the limit"),
    ],
)
def test_text_that_is_not_json(text, problem):
    with pytest.raises(
        SdftError, match=rf"^rows\.jsonl, line 3 is not valid JSON \({problem}.*\): fix it\.$"
    ):
        parse_json(text, "rows.jsonl, line 3", "fix it")


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SdftError, match=rf"^{tmp_path}/none does not exist: download it\.$"):
        read_bytes(tmp_path / "none", "download it")
    with pytest.raises(SdftError, match=rf"^{tmp_path} is a directory: download it\.$"):
        read_bytes(tmp_path, "download it")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SdftError, match=r"/pipe is not a regular file: download it\.$"):
        read_bytes(tmp_path / "pipe", "download it")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(SdftError, match=r"loop' cannot be read \(Too many levels of symbolic links\): down"):
        read_bytes(tmp_path / "loop", "download it")
    with pytest.raises(SdftError, match=r"cannot be read \(.*null.*\): download it\.$"):
        read_bytes("a\0b", "download it")


def test_large_file_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: it takes no space
    with pytest.raises(
        SdftError, match=r"large has 1,099,511,627,776 bytes, more than the maximum of 1,000: "
    ):
        read_bytes(file, "download it", limit=1000)


def test_json_of_another_type(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[1]")
    assert read_json(file, "fix it", kind=list) == [1]
    with pytest.raises(SdftError, match=r"a\.json holds a JSON list instead of a dict: fix it\.$"):
        read_json(file, "fix it")


def test_damaged_lines_are_counted_and_an_incomplete_last_line_is_not(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b'{"a": 1}\n[2]\n\xff\n{"a": 2}\n{"a"')
    assert read_json_lines(file) == ([{"a": 1}, {"a": 2}], 2)
    file.write_bytes(b'{"a": 1}\n{"a": 2}')
    assert read_json_lines(file) == ([{"a": 1}, {"a": 2}], 0)
    file.write_bytes(b"")
    assert read_json_lines(file) == ([], 0)


@pytest.fixture
def nobody(monkeypatch):
    """A system that has no name for any user, and no home directories."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME")


def test_size_of_a_file_whose_owner_has_no_name(tmp_path, nobody):
    (tmp_path / "file").write_bytes(b"12345")
    path = epath.Path(tmp_path / "file")
    with pytest.raises(KeyError):
        path.stat()
    assert file_size(path) == 5


def test_named_pipe_is_not_a_regular_file_and_holds_no_record(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    path = epath.Path(tmp_path / "pipe")
    assert path.is_file()
    assert not is_regular(path)
    assert read_record(path) == {}
    (tmp_path / "file").write_text('{"a": 1}')
    assert is_regular(epath.Path(tmp_path / "file"))


def test_values_that_are_nested_more_deeply_than_the_stack_of_their_readers():
    assert parse_json(b"[" * 100 + b"]" * 100, "a.json", "fix it")
    with pytest.raises(SdftError, match=r"^a\.json is not valid JSON \(it is nested too deeply\): fix it\.$"):
        parse_json(b"[" * 102 + b"]" * 102, "a.json", "fix it")


def test_damaged_record_is_empty_and_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", "."):
        assert read_record(epath.Path(tmp_path / name)) == {}
