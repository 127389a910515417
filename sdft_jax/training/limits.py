"""The system's limits for this process: open files and address space."""

from __future__ import annotations

import contextlib
import resource

from sdft_jax.errors import SdftError

FILES, ENOUGH_FILES = 64, 1 << 16
"""The minimum of open files, with which the smallest models train, and a number that is always enough."""
ADDRESS_SPACE = 4 << 30
"""The minimum of address space, in bytes. The smallest run needs 2.5 GiB on two cores, and JAX's compiler
aborts the process with a C++ message if it gets less."""


def prepare_limits() -> None:
    """Raise the limit of open files as far as the user may.

    Raises:
        SdftError: a limit is below the minimum.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < FILES:
        raise SdftError(f"this process may open only {hard} files: set a limit of at least 1024 (ulimit -n).")
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY and space < ADDRESS_SPACE:
        raise SdftError(
            f"the address space of this process is limited to {space / 2**30:.1f} GiB, and JAX reserves more "
            f"of it than it uses: remove the limit (ulimit -v unlimited), or set it to at least "
            f"{ADDRESS_SPACE >> 30} GiB plus the memory of the run."
        )
