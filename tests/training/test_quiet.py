"""Background threads do not print errors that the main thread raises; all others are printed."""

import subprocess
import sys

CODE = """
import asyncio, logging, threading
from sdft_jax.training.quiet import quiet_libraries
quiet_libraries()
class _SignalingThread(threading.Thread):
    pass
def fail():
    raise OSError("disk")
for kind in (_SignalingThread, threading.Thread):
    thread = kind(target=fail, name=kind.__name__)
    thread.start()
    thread.join()
logging.getLogger("absl").error("thread _SignalingThread.run() raised an exception: disk")
logging.getLogger("absl").error("another error")
class Closed:
    def __del__(self):
        raise RuntimeError(self.text)
for text in ("Event loop is closed", "something else"):
    closed = Closed()
    closed.text = text
    del closed
"""


def test_only_repeated_errors_are_dropped():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert "_SignalingThread" not in done.stderr
    assert "Event loop is closed" not in done.stderr
    for kept in ("Exception in thread Thread", "another error", "something else"):
        assert kept in done.stderr
