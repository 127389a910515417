"""The owner of a run directory: at most one run writes to it.

On a local disk, the kernel holds the lock, and releases it when the process ends in any way. In a bucket, the
owner renews an object; an owner that does not renew it for a while has ended.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from sdft_jax.errors import SdftError
from sdft_jax.files import read_record, write_text

LOCK = ".lock"
"""Name of the file or object with the owner."""

RENEWAL = 15.0
"""Seconds between two renewals of an object in a bucket."""
PATIENCE = 4
"""Number of renewals that an owner may miss before it counts as ended."""


@contextlib.contextmanager
def locked(output: str, remote: bool, option: str = "output=") -> Iterator[None]:
    """Own the directory `output`, which exists, until the context ends; messages name the `option`.

    Raises:
        SdftError: another process owns it; the message has its host and process ID.
    """
    with _locked_object(output) if remote else _locked_file(output, option):
        yield


@contextlib.contextmanager
def _locked_file(output: str, option: str) -> Iterator[None]:
    path = Path(output) / LOCK
    # not followed if another user made it a link
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(output, read_record(epath.Path(path)), option) from None
        except OSError:  # a network file system without locks
            pass
        file.truncate(0)
        file.write(json.dumps(_owner()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def _locked_object(output: str) -> Iterator[None]:
    path = epath.Path(output) / LOCK
    if read_record(path):
        _await_end(output, path)
    token = uuid.uuid4().hex
    stop = threading.Event()

    def renew() -> None:
        write_text(path, json.dumps(_owner() | {"token": token, "renewed": time.time()}))

    def renew_until_stopped() -> None:
        while not stop.wait(RENEWAL):
            with contextlib.suppress(Exception):  # the network may be away for a moment
                if (owner := read_record(path)).get("token", token) != token:
                    print(f"sdft: {_refusal(output, owner)}", file=sys.stderr, flush=True)
                    os._exit(2)  # at once: the other run writes
                renew()

    renew()
    time.sleep(1.0)  # of two processes that start together, the last one to write owns it
    if (owner := read_record(path)).get("token") != token:
        raise _refusal(output, owner)
    thread = threading.Thread(target=renew_until_stopped, daemon=True, name="lock")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(Exception):
            if read_record(path).get("token") == token:
                path.unlink()


def _await_end(output: str, path: epath.Path) -> None:
    """Return when the owner has ended: it removes the object, or does not renew it any more.

    Raises:
        SdftError: the owner renewed it.
    """
    before = read_record(path)
    for _ in range(PATIENCE):
        time.sleep(RENEWAL)
        now = read_record(path)
        if not now:
            return
        if now != before:
            raise _refusal(output, now)


def _owner() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": now}


def _refusal(output: str, owner: dict[str, Any], option: str = "output=") -> SdftError:
    owner = {"process": "?", "host": "an unknown host", "since": "an unknown time"} | owner
    return SdftError(
        f"{option}{output} is in use by process {owner['process']} on {owner['host']}, since "
        f"{owner['since']}: wait until it ends, stop it, or give another {option.strip()}."
    )
