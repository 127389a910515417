"""Answers survive the end of a process."""

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.evaluation.request_log import open_requests


def test_answers_are_kept_without_a_line_that_was_cut(tmp_path):
    file = tmp_path / "answers.jsonl"
    with open_requests(file) as log:
        log.add("x", [-1.5, True])
        log.add("y", "two\nlines")
    file.write_text(file.read_text() + '{"request": "z", "ans')
    with open_requests(file) as log:
        assert log.answers == {"x": [-1.5, True], "y": "two\nlines"}
        log.add("z", 1)
        assert len(file.read_text().splitlines()) == 3, "an answer is on disk as soon as it is known"
    with open_requests(file) as log:
        assert list(log.answers) == ["x", "y", "z"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    log = open_requests(tmp_path / "none" / "answers.jsonl")
    with pytest.raises(SdftError, match=r"none/answers.jsonl cannot be written"), log:
        pass
