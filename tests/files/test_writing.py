"""A file is complete or as it was before, whatever fails while it is written."""

import errno
import json
import os
import stat

import pytest
from etils import epath

from sdft_jax.errors import SdftError
from sdft_jax.files import parse_sealed
from sdft_jax.files.writing import open_replacement, sealed, write_errors, write_text


def test_text_is_utf8_whatever_the_locale(tmp_path):
    write_text(tmp_path / "a", "é")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9"
    assert os.listdir(tmp_path) == ["a"]


def test_mode_of_a_new_file_follows_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_old_content_stays_if_writing_fails(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(TypeError), open_replacement(tmp_path / "a") as file:
        file.writelines(["new", 1])
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_replaced_file_can_be_extended(tmp_path):
    with open_replacement(tmp_path / "a", "wb") as file:
        file.write(b"1")
    file.write(b"2")
    file.close()
    assert (tmp_path / "a").read_bytes() == b"12"


def test_target_of_a_link_is_not_overwritten(tmp_path):
    write_text(tmp_path / "precious", "keep")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "precious").read_text() == "keep"
    assert (tmp_path / "a").read_text() == "new"


def test_sealed_record_is_read_back_and_its_damage_noticed(tmp_path):
    value = {"score": 0.9, "text": "a\u2028ü"}
    file = epath.Path(tmp_path / "record.json")
    file.write_text(json.dumps(sealed(value)))
    assert parse_sealed(file.read_bytes()) == value
    text = file.read_text()
    for damaged in (
        text.replace("0.9", "0.8"),
        text[:-2],
        "",
        "[]",
        '{"record": 1}',
        '{"record": "{}"}',
        "\x00",
    ):
        assert parse_sealed(damaged.encode()) == {}


def test_replacement_may_be_read(tmp_path):
    with open_replacement(tmp_path / "a", "w+") as file:
        file.write("text")
    file.seek(0)
    assert file.read() == "text"
    file.close()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EDQUOT, errno.EIO])
def test_error_of_the_system_names_the_file_and_leaves_it_as_it_was(tmp_path, monkeypatch, code):
    """These errors cannot be made without the file system that has them."""
    write_text(tmp_path / "a", "before")

    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SdftError) as caught, write_errors(tmp_path / "a", "give another file"):
        write_text(tmp_path / "a", "after")
    assert str(caught.value) == f"{tmp_path}/a cannot be written ({os.strerror(code)}): give another file."
    assert (tmp_path / "a").read_text() == "before"
    assert os.listdir(tmp_path) == ["a"]


def test_full_disk_names_the_file():
    message = r"^/dev/full cannot be written \(No space left on device\): free"
    with (
        pytest.raises(SdftError, match=message),
        write_errors("/dev/full", "free some"),
        open("/dev/full", "w", encoding="utf-8") as file,
    ):
        file.write("text")
