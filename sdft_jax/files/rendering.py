"""Rendering of chat templates, which others wrote, within limits of time, memory and output.

A process of its own renders them, because nothing else holds for every template: `render_process.py`.
"""

from __future__ import annotations

import atexit
import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from sdft_jax.errors import SdftError, reason
from sdft_jax.files.render_process import NUMBER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Limits(NamedTuple):
    """The limits of one rendering."""

    seconds: float = 10.0
    """Processor time, in seconds; published templates take less than a millisecond."""
    output: int = 1 << 26
    """Length of the text, in bytes."""
    memory: int = 1 << 30
    """Memory in addition to that of the process, in bytes."""

    def for_input(self, size: int) -> Limits:
        """Return the limits for an input of `size` bytes: a long row may have a long text."""
        return self._replace(output=self.output + 4 * size, memory=self.memory + 32 * size)


LIMITS = Limits()


class RenderError(Exception):
    """A chat template rejects a conversation, or exceeds a limit; the message is the reason."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    kwargs: Mapping[str, Any],
    generation_prompt: bool = True,
) -> str:
    """Return the text of the chat template, that of `apply_chat_template`.

    Raises:
        RenderError: the template rejects the conversation or exceeds `LIMITS`.
    """
    options = {
        **tokenizer.special_tokens_map,
        **kwargs,
        "tokenize": False,
        "add_generation_prompt": generation_prompt,
    }
    try:
        work = pickle.dumps((tokenizer.chat_template, [dict(message) for message in messages], options))
    except Exception as error:  # an argument that is not data, such as a function
        raise RenderError(reason(error)) from None
    with _LOCK:
        return _exchange(pickle.dumps((*LIMITS.for_input(len(work)), work)))


def start_renderer() -> None:
    """Start the process that renders, unless it runs; otherwise the first rendering waits for it."""
    with _LOCK:
        _process(os.getpid())


_LOCK = threading.Lock()


@functools.lru_cache(maxsize=1)
def _process(owner: int) -> subprocess.Popen[bytes]:
    """Return the process that renders for the process `owner`; it ends with the pipe, and so with `owner`."""
    program = Path(__file__).with_name("render_process.py")
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent
        )
    except OSError as error:
        raise SdftError(
            f"a process that renders the chat template cannot be started ({reason(error)}): raise the limits "
            "of processes, memory or open files."
        ) from None
    atexit.register(_end, process)
    return process


def _exchange(request: bytes) -> str:
    """Return the answer to a request; after a failure of the process, the next request starts another one."""
    if _process(os.getpid()).poll() is not None:
        _process.cache_clear()
    process = _process(os.getpid())
    complete = False
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(NUMBER.pack(len(request)) + request)
        process.stdin.flush()
        *size, good = _read(process.stdout, NUMBER.size + 1)
        answer = _read(process.stdout, *NUMBER.unpack(bytes(size))).decode("utf-8", "surrogatepass")
        complete = True
    except (BrokenPipeError, EOFError):
        code = process.wait()
        slow = code == -signal.SIGPROF
        problem = (
            f"takes more than {LIMITS.seconds:g} s of processor time"
            if slow
            else f"ends its process with code {code}"
        )
        raise RenderError(f"it {problem}") from None
    finally:
        if not complete:  # such as Ctrl-C: the answer to this request would be read as that to the next one
            _process.cache_clear()
            _end(process)
    if not good:
        raise RenderError(answer)
    return answer


def _read(pipe: IO[bytes], size: int) -> bytes:
    """Return `size` bytes. Raises EOFError if the pipe ends before."""
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
