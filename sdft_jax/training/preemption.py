"""Preemption: SIGTERM, SIGINT or SIGHUP ends a run after the current step, or within an evaluation.

Until the first step has ended, there is nothing to save, and a signal ends the process at once. Google's
maintenance notices become a SIGTERM. JAX listens only for SIGTERM. On a Compute Engine or TPU VM, the
metadata server announces maintenance; on GKE, the pods receive a SIGTERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

from sdft_jax.errors import SdftError
from sdft_jax.training.sigint import SAVES

SECONDS, HOST = "SDFT_MAINTENANCE", "GCE_METADATA_HOST"
"""Environment variables: seconds between two requests (unset for none); the metadata server's address."""
ANNOUNCED = "TERMINATE_ON_HOST_MAINTENANCE"
_PATH = "computeMetadata/v1/instance/maintenance-event"


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(Exception):
    """The run received a signal and has saved its state; the same command resumes it."""

    def __init__(self, message: str, by: signal.Signals = signal.SIGTERM):
        super().__init__(message)
        self.by = by
        """The signal."""


class Terminated(Exception):
    """A run should end now, because of a signal; its loop saves the state and raises `Interrupted`."""

    def __init__(self, by: signal.Signals):
        super().__init__(f"{by.name} requests the end of the run")
        self.by = by
        """The signal."""


@dataclasses.dataclass(frozen=True)
class Requests:
    """The requests of signals to end a run."""

    listen: Callable[[], None]
    """Handle signals from now on, as soon as there is something to save. Before, a signal ends the process at
    once, also while the first step compiles. A second call does nothing."""
    check: Callable[[], None]
    """Raise `Terminated` if the run should end now. All processes make the same sequence of calls."""


_CHECKS = itertools.count(1)
"""The numbers of the checks with several processes, also of consecutive runs: JAX ends all processes at the
check after the last one that any of them had made when the signal came."""


@contextlib.contextmanager
def termination_requests() -> Iterator[Requests]:
    """Yield the requests of signals to end the run.

    A second SIGINT ends the process at once. With several processes JAX listens on all hosts, and all
    processes end at the same check. A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    received: list[signal.Signals] = []
    several = jax.process_count() > 1
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: Any) -> None:
        old = previous.get(signal.SIGINT)
        if number == signal.SIGINT and number in received and callable(old):
            old(number, frame)
        received.append(signal.Signals(number))
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    def listen() -> None:
        if not previous:
            # with several processes, SIGTERM has JAX's own handler
            previous.update(_install(handle, SIGNALS[1:] if several else SIGNALS))
            if signal.SIGINT in previous:
                SAVES.set()

    def check() -> None:
        if several and multihost_utils.reached_preemption_sync_point(next(_CHECKS)):
            raise Terminated(signal.SIGTERM)
        if received and not several:
            raise Terminated(received[0])

    try:
        yield Requests(listen, check)
    finally:
        SAVES.clear()
        for number, old in previous.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _install(handle: Any, signals: Sequence[signal.Signals]) -> dict[signal.Signals, Any]:
    """Install a handler for the signals that are not ignored; return the old handlers."""
    old: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread, as in a notebook's executor
        for number in signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                old[number] = signal.signal(number, handle)
    return old


def watch_maintenance(environment: Mapping[str, str] = os.environ) -> None:
    """Query the metadata server in the background, if SDFT_MAINTENANCE is set.

    An event that was announced before the run started does not end it: it has already ended the run before.

    Raises:
        SdftError: SDFT_MAINTENANCE is not a number of seconds.
    """
    text = environment.get(SECONDS, "")
    if not text:
        return
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SdftError(
            f"{SECONDS}={text!r} is not a number of seconds: set it to one such as 5, or unset it if there "
            "is no Google metadata server."
        )
    host = environment.get(HOST) or "metadata.google.internal"
    threading.Thread(target=_watch, args=(host, seconds), daemon=True, name="maintenance").start()


def _watch(host: str, seconds: float) -> None:
    previous = warning = ""
    while True:
        try:
            event = _event(host)
        except (OSError, ValueError) as error:  # may be temporary: try again
            if not warning:
                warning = (
                    f"{host} does not report maintenance events ({error}); the run continues without them"
                )
                print(f"sdft: {warning}.", file=sys.stderr, flush=True)
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:  # permanent
                return
        else:
            if event == ANNOUNCED and previous not in ("", ANNOUNCED):
                print("sdft: maintenance of this host is announced.", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            previous = event
        time.sleep(seconds)


def _event(host: str) -> str:
    """Return the announced event of this host; `NONE` if there is none."""
    request = urllib.request.Request(f"http://{host}/{_PATH}", headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this host
    with direct.open(request, timeout=5) as answer:
        return answer.read().decode().strip()
