"""A log of answers that a model has given, so that an interrupted evaluation continues where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sdft_jax.files import json_line, open_replacement, read_json_lines, write_errors


@dataclasses.dataclass(frozen=True)
class RequestLog:
    """The answers by the names of their requests, in memory and, if there is a file, on disk."""

    answers: dict[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values."""
    file: IO[str] | None = None

    def add(self, name: str, answer: Any) -> None:
        """Record an answer."""
        self.answers[name] = answer
        if self.file:
            with write_errors(self.file.name, "fix this and run the command again, which continues"):
                self.file.write(_line(name, answer))
                self.file.flush()


@contextlib.contextmanager
def open_requests(path: Path) -> Iterator[RequestLog]:
    """Open the log in a file, which need not exist, with the answers that it has.

    The file must belong to one model: a request is all that an answer depends on otherwise.

    Raises:
        SdftError: the file cannot be read or written.
    """
    rows = read_json_lines(path)[0] if path.exists() else []
    answers = {row["request"]: row["answer"] for row in rows if row.keys() == {"request", "answer"}}
    remedy = "fix this, or give another directory, and run the command again"
    with write_errors(path, remedy), open_replacement(path) as file:  # without a line that a kill has cut
        file.writelines(_line(name, answer) for name, answer in answers.items())
    with file:
        yield RequestLog(answers, file)


def _line(name: str, answer: Any) -> str:
    return json_line({"request": name, "answer": answer})
