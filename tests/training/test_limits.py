"""Limits of the system end a command in one sentence, or are raised."""

import resource
import subprocess
import sys

import pytest

from sdft_jax.training.limits import ADDRESS_SPACE, FILES

SAMPLE = """
import sys
from sdft_jax import cli
sys.argv[1:] = ["sample", "/nowhere", "hello"]
sys.exit(cli.main())
"""


def run(limits, code):
    """Run Python code in a process with these (soft, hard) limits."""

    def set_limits():
        for limit, values in limits.items():
            resource.setrlimit(limit, values)

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=set_limits)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        (resource.RLIMIT_NOFILE, FILES - 1, "sdft: this process may open only 63 files: set a limit of at"),
        (
            resource.RLIMIT_AS,
            ADDRESS_SPACE - 1,
            "sdft: the address space of this process is limited to 4.0 GiB",
        ),
        (resource.RLIMIT_AS, 500 << 20, "sdft: the address space of this process is limited to 0.5 GiB"),
    ],
)
def test_limit_that_is_too_low_is_one_sentence(limit, value, message):
    code, output, errors = run({limit: (value, value)}, SAMPLE)
    assert (code, output) == (2, "")
    assert errors.startswith(message)
    assert errors.count("\n") == 1


def test_sufficient_limits_are_not_refused():
    limits = {resource.RLIMIT_NOFILE: (FILES, FILES), resource.RLIMIT_AS: (ADDRESS_SPACE,) * 2}
    _, _, errors = run(limits, SAMPLE)
    assert "/nowhere" in errors


def test_limit_of_open_files_is_raised_to_what_the_user_may_set():
    code = (
        "import resource; from sdft_jax.training.limits import prepare_limits\n"
        "prepare_limits(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert run({resource.RLIMIT_NOFILE: (32, 256)}, code)[1] == "256 256\n"
