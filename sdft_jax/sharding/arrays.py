"""Arrays that span processes: from host copies that every process has, and back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding


def spread(tree: Any, sharding: Sharding) -> Any:
    """Host arrays that every process has whole -> global arrays."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index]),
        tree,
    )


def collect(tree: Any) -> Any:
    """Global arrays -> host arrays, whole on every process."""
    jax.block_until_ready(tree)  # an error of the device is raised here; NumPy would end the process
    return jax.tree.map(
        lambda x: (
            np.asarray(x)
            if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
            else multihost_utils.process_allgather(x, tiled=True)
        ),
        tree,
    )
