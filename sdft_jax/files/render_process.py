"""The program of the process that renders chat templates for `rendering.py`.

A template is a program that others wrote. It may loop without end, or make a text that is larger than memory
in one operation, which nothing inside a process can interrupt. So the system limits this process: SIGPROF
ends it after a given processor time, and an allocation over the given memory fails.

A request is the number of its bytes and a pickle, from the parent. An answer is the number of its bytes, a
byte that is 1 for a text and 0 for the reason of a failure, and that text or reason.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import IO, Any

NUMBER = struct.Struct("<Q")
"""The format of a number of bytes."""


def main() -> None:
    """Answer requests on the standard input until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but answers is written to the pipe
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    from transformers import PreTrainedTokenizerBase

    tokenizer: Any = PreTrainedTokenizerBase()
    while header := requests.read(NUMBER.size):
        request = requests.read(*NUMBER.unpack(header))
        seconds, most_output, most_memory, work = pickle.loads(request)
        try:
            _limit_memory(most_memory)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            tokenizer.chat_template, messages, options = pickle.loads(work)
            answer = str(tokenizer.apply_chat_template(messages, **options)).encode("utf-8", "surrogatepass")
            if not (good := len(answer) <= most_output):
                answer = f"it makes more than {most_output >> 20:,} MiB of text".encode()
        except MemoryError:
            good, answer = False, f"it needs more than {most_memory >> 20:,} MiB of memory".encode()
        except Exception as error:  # a template raises exceptions of any type
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            good, answer = False, first_line.encode("utf-8", "replace")
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answers, good, answer)


def _write(answers: IO[bytes], good: bool, answer: bytes) -> None:
    answers.write(NUMBER.pack(len(answer)) + bytes([good]))
    answers.write(answer)
    answers.flush()


def _limit_memory(more: int) -> None:
    """Let this process allocate `more` bytes than it has now; only Linux counts them."""
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        now = int(sizes.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    main()
