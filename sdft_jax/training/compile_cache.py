"""The persistent compilation cache: a later run of the same shapes starts without compiling."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import jax


def enable_compile_cache() -> None:
    """Enable JAX's persistent compilation cache, unless the environment or the program has configured it.

    The directory is $XDG_CACHE_HOME/sdft_jax/HOST (default: ~/.cache/sdft_jax/HOST): a program compiled for
    one CPU may not run on another host that shares the home directory.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or _configured():
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "sdft_jax" / platform.node()))


def _configured() -> Any:
    """Return the directory that the program has set; jax.config is not typed."""
    return getattr(jax.config, "jax_compilation_cache_dir", None)
