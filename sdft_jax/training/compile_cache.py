"""The persistent compilation cache: a later run of the same shapes starts without compiling."""

from __future__ import annotations

import functools
import os
import platform
import sys
import tempfile
from typing import Any

import jax

from sdft_jax.errors import SdftError, reason
from sdft_jax.files import cache_directory


def enable_compile_cache() -> None:
    """Enable JAX's persistent compilation cache, unless the environment or the program has configured it.

    The directory is $XDG_CACHE_HOME/sdft_jax/HOST (default: ~/.cache/sdft_jax/HOST): a program compiled for
    one CPU may not run on another host that shares the home directory. Without such a directory there is no
    cache, which one sentence says.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or _configured():
        return
    try:
        directory = cache_directory() / platform.node()
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):  # root may write without permission, but not everywhere
            pass
    except (SdftError, OSError) as error:
        _print_once(f"sdft: compiled programs are not kept for later runs: {reason(error)}.")
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))


@functools.cache
def _print_once(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _configured() -> Any:
    """Return the directory that the program has set; jax.config is not typed."""
    return getattr(jax.config, "jax_compilation_cache_dir", None)
