"""Compiled programs are kept on disk, so that the next run of the same shapes starts at once."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import jax


def cache_compilations() -> None:
    """Switch JAX's persistent compilation cache on, unless the environment has chosen one or none.

    It lies in $XDG_CACHE_HOME/sdft_jax (~/.cache/sdft_jax), apart for every host: programs compiled for one
    CPU need not run on another that shares the home directory.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or _chosen():
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "sdft_jax" / platform.node()))


def _chosen() -> Any:
    """The directory that the program itself has set; jax.config is not typed."""
    return getattr(jax.config, "jax_compilation_cache_dir", None)
