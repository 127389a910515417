"""Losing the output does not end a process, and every encoding can show every text."""

import os
import subprocess
import sys

import pytest

LINES = """
import os, sys
from sdft_jax.reporting.stream import keep_standard_streams, make_console
keep_standard_streams()
console = make_console()
for number in range(300):  # more than a pipe holds
    console.print("line", number, "-" * 1000)
    print("line", number, "-" * 1000, file=sys.stderr)
descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
assert min(descriptors) > 2, "a file has the number of a standard stream"
os.write(int(sys.argv[1]), b"done")
"""


def ends_well(redirection: str) -> bool:
    """Return True if the program runs to its end in a shell with these redirections."""
    reader, writer = os.pipe()
    command = f'"{sys.executable}" -c "$0" {writer} {redirection}'
    done = subprocess.run(["bash", "-c", command, LINES], pass_fds=[writer], capture_output=True)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return file.read() == b"done" and done.returncode == 0


@pytest.mark.parametrize(
    "redirection",
    [
        "> /dev/full 2>&1",
        "2> /dev/full",
        ">&-",
        ">&- 2>&-",
        "> >(head -1) 2> >(head -1)",
    ],
)
def test_process_outlives_its_output(redirection):
    assert ends_well(redirection)


@pytest.mark.parametrize(
    ("encoding", "shown"), [("latin-1", b"na\xefve \\u2013\n"), ("ascii", b"na\\xefve \\u2013\n")]
)
def test_characters_that_an_encoding_does_not_have_are_escaped(encoding, shown):
    code = (
        "from sdft_jax.reporting.stream import *; keep_standard_streams(); print('na\\xefve \\u2013'); "
        "make_console().print('na\\xefve \\u2013')"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == shown * 2
