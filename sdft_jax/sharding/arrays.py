"""Arrays that span processes: creation from host arrays, and copies back to every host."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding


def to_global(tree: Any, sharding: Sharding) -> Any:
    """Return global arrays from host arrays; every process passes the full arrays."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index]),
        tree,
    )


def to_host(tree: Any) -> Any:
    """Return full host copies of global arrays on every process."""
    jax.block_until_ready(tree)  # a device error raises here; in NumPy it would abort the process
    return jax.tree.map(
        lambda x: (
            jax.device_get(x)  # explicit, so that a transfer guard allows it
            if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
            else _gather(x)
        ),
        tree,
    )


def _gather(x: jax.Array) -> np.ndarray:
    """Return a full copy, on each process, of an array that spans processes."""
    with jax.transfer_guard_device_to_host("allow"):  # process_allgather reads its result implicitly
        return multihost_utils.process_allgather(x, tiled=True)
