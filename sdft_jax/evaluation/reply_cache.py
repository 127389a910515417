"""The replies of endpoints on disk: a file of JSON lines that several processes may extend at one time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft_jax.files import cache_directory, read_json_lines, write_errors

REMEDY = "set judge.cache to a file on a local disk that can be written"


class ReplyCache:
    """Replies by the digest of their request.

    A reply is appended as one line when it arrives, so that nothing is lost if the process ends. Damaged
    lines are ignored: their requests are made again.

    Args:
        path: the file; None for judge.jsonl in the user's cache.

    Raises:
        SdftError: the file cannot be read or written.
    """

    def __init__(self, path: str | None):
        self.path = Path(path) if path else cache_directory() / "judge.jsonl"
        self._lock = threading.Lock()
        self._replies: dict[str, str] = {}
        self.damaged = 0
        """The number of lines that could not be read."""
        with write_errors(self.path, REMEDY):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._separate()
        if self.path.is_file():  # not /dev/null, for no cache
            self._read()

    def get(self, key: str) -> str | None:
        """Return the stored reply to a request; None if there is none."""
        return self._replies.get(key)

    def add(self, key: str, reply: str, **about: str) -> None:
        """Store the reply to a request.

        Args:
            key: the digest of the request.
            reply: the text.
            about: further fields of the line, for people who read the file.
        """
        reply = reply.encode("utf-8", "replace").decode()  # half of a surrogate pair is not a character
        line = json.dumps({"key": key, "reply": reply, **about}).encode() + b"\n"
        with self._lock, write_errors(self.path, REMEDY):
            self._replies[key] = reply
            self._append(line)

    def _read(self) -> None:
        rows, self.damaged = read_json_lines(self.path)
        for row in rows:
            key, reply = row.get("key"), row.get("reply")
            if isinstance(key, str) and isinstance(reply, str):
                self._replies[key] = reply
            else:
                self.damaged += 1

    def _separate(self) -> None:
        """End the last line if a killed process has not, and verify that the file can be written."""
        with open(self.path, "ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    self._append(b"\n")

    def _append(self, line: bytes) -> None:
        """Append bytes in one call of the system, which other processes do not interleave with theirs."""
        with open(self.path, "ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def digest_of(request: Mapping[str, Any]) -> str:
    """Return the digest of a request's body: model, messages and sampling."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
