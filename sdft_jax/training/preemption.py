"""Preemption: SIGTERM ends a run after the current step, and Google's maintenance notices become a SIGTERM.

JAX listens only for SIGTERM. On a Compute Engine or TPU VM, the metadata server announces maintenance; on
GKE, the pods receive a SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping

import jax
from jax.experimental import multihost_utils

from sdft_jax.errors import SdftError

SECONDS, HOST = "SDFT_MAINTENANCE", "GCE_METADATA_HOST"
"""Environment variables: seconds between two requests (unset for none); the metadata server's address."""
ANNOUNCED = "TERMINATE_ON_HOST_MAINTENANCE"
_PATH = "computeMetadata/v1/instance/maintenance-event"


class Interrupted(Exception):
    """The run received SIGTERM and has saved its state; the same command resumes it."""


@contextlib.contextmanager
def termination_requests() -> Iterator[Callable[[int], bool]]:
    """Yield a function that returns True if the run should end after this step, because of a SIGTERM.

    With several processes JAX listens on all hosts, and all processes end after the same step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    except ValueError:  # not the main thread, as in a notebook's executor: signals cannot be handled
        yield lambda _: False
        return
    try:
        yield lambda _: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)


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
