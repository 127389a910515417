"""Maintenance that Google announces for this host becomes a SIGTERM, on which a run saves and ends.

JAX listens to SIGTERM alone. A Compute Engine or TPU VM learns of maintenance from its metadata server only;
on GKE the pods get a SIGTERM of their own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

from sdft_jax.errors import SdftError

SECONDS, HOST = "SDFT_MAINTENANCE", "GCE_METADATA_HOST"
"""Environment: seconds between two looks, without which nothing is asked; the metadata server's address."""
ANNOUNCED = "TERMINATE_ON_HOST_MAINTENANCE"
_PATH = "computeMetadata/v1/instance/maintenance-event"


def watch(environment: Mapping[str, str] = os.environ) -> None:
    """Ask the metadata server in the background, if SDFT_MAINTENANCE says how often.

    What is announced already when a run starts does not stop it: it has been stopped for that before.

    Raises:
        SdftError: SDFT_MAINTENANCE is no number of seconds.
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
            f"{SECONDS}={text!r} is no number of seconds: give one such as 5, or unset it where there is no "
            "metadata server of Google's."
        )
    host = environment.get(HOST) or "metadata.google.internal"
    threading.Thread(target=_watch, args=(host, seconds), daemon=True, name="maintenance").start()


def _watch(host: str, seconds: float) -> None:
    before = complained = ""
    while True:
        try:
            now = _event(host)
        except (OSError, ValueError) as error:  # it may be back at the next look
            reason = f"{host} does not tell of maintenance ({error}); the run goes on without knowing"
            if not complained:
                print(f"sdft: {reason}.", file=sys.stderr, flush=True)
            complained = reason
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:  # nor will it ever
                return
        else:
            if now == ANNOUNCED and before not in ("", ANNOUNCED):
                print("sdft: maintenance of this host is announced.", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            before = now
        time.sleep(seconds)


def _event(host: str) -> str:
    """What is announced for this host; NONE where nothing is."""
    request = urllib.request.Request(f"http://{host}/{_PATH}", headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this very host
    with direct.open(request, timeout=5) as answer:
        return answer.read().decode().strip()
