"""A picture of where arrays live: the parts of each, and which devices hold them."""

from __future__ import annotations

import dataclasses
import math
import os
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdft_jax.errors import SdftError
from sdft_jax.reporting.run_plot import COLOURS, STYLE

SHADES = (*COLOURS, *(f"{colour}60" for colour in COLOURS))
"""Of devices by their number, again from the first where there are more; numbers tell them apart."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one array lives."""

    split: Sequence[int]
    """Dimensions that are cut into parts."""
    devices: np.ndarray
    """[parts along each of `split`..., copies] ids of the devices that hold each part."""
    local_bytes: int
    """That one device holds."""
    bytes: int
    """Of the whole array."""


def placement(array: Any) -> Placement:
    """Parts and devices of anything with a shape, a dtype and a sharding, such as a `jax.Array`."""
    shape = tuple(array.shape)
    holders: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for device, index in array.sharding.devices_indices_map(shape).items():
        holders[tuple(cut.start or 0 for cut in index)].append(device.id)
    starts = [sorted({start[axis] for start in holders}) for axis in range(len(shape))]
    split = [axis for axis, found in enumerate(starts) if len(found) > 1]
    counts = [len(starts[axis]) for axis in split]
    devices = np.array([sorted(holders[start]) for start in sorted(holders)]).reshape(*counts, -1)
    size = jnp.dtype(array.dtype).itemsize
    local = math.prod(array.sharding.shard_shape(shape)) * size
    return Placement(split, devices, local, math.prod(shape) * size)


def plot_placement(
    arrays: Mapping[str, Any],
    out: str | os.PathLike[str],
    caption: str = "",
    *,
    dimensions: Mapping[str, Sequence[str | None]] | None = None,
) -> None:
    """Write a panel for each array: its parts divided by black lines, in each the devices that hold it.

    Only dimensions that are cut are drawn, the first of them downwards and any others together to the right.
    Several devices in one part hold the same copy.

    Args:
        arrays: title -> anything with a shape, a dtype and a sharding; `jax.ShapeDtypeStruct` will do.
        out: PNG to write.
        caption: what is shown.
        dimensions: title -> names of the array's dimensions; their numbers stand where there are none.

    Raises:
        SdftError: no arrays.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot, a notebook keeps its own backend

    if not arrays:
        raise SdftError(f"{out}: there is nothing to draw; give at least one array.")
    columns = 3 if len(arrays) in (5, 6) else min(4, len(arrays))
    rows = math.ceil(len(arrays) / columns)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.2 * columns, 2.9 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(arrays) :]:
            axis.remove()
        for axis, (title, array) in zip(axes, arrays.items(), strict=False):
            _draw(axis, title, array, (dimensions or {}).get(title, ()))
        if caption:
            figure.supxlabel(textwrap.fill(caption, 42 * columns), fontsize=9, color="#555555")
        figure.savefig(out, dpi=100)


def _draw(axis: Any, title: str, array: Any, names: Sequence[str | None]) -> None:
    from matplotlib.patches import Rectangle

    found = placement(array)
    copies = found.devices.shape[-1]
    down = found.devices.shape[0] if found.split else 1
    parts = found.devices.reshape(down, -1, copies)
    height, width = 1 / down, 1 / parts.shape[1]
    for (row, column, copy), device in np.ndenumerate(parts):
        place = (column * width + copy * width / copies, row * height)
        axis.add_patch(
            Rectangle(place, width / copies, height, facecolor=SHADES[device % len(SHADES)], linewidth=0)
        )
        middle = (place[0] + width / copies / 2, place[1] + height / 2)
        axis.text(*middle, str(device), ha="center", va="center", fontsize=9)
    for row, column in np.ndindex(parts.shape[:2]):
        axis.add_patch(Rectangle((column * width, row * height), width, height, fill=False, linewidth=2))
    axis.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    label = [f"{_name(names, dimension)} {array.shape[dimension]}" for dimension in found.split]
    axis.set_ylabel(label[0] if label else "")
    axis.set_xlabel(" x ".join(label[1:]))
    kind = f"{jnp.dtype(array.dtype).name}[{', '.join(map(str, array.shape))}]"
    held = f"{_size(found.local_bytes)} of {_size(found.bytes)} on a device"
    axis.set_title(title, fontsize=10, pad=28)
    axis.text(0, 1.03, f"{kind}\n{held}", transform=axis.transAxes, fontsize=8, color="#555555", va="bottom")


def _name(names: Sequence[str | None], dimension: int) -> str:
    name = names[dimension] if dimension < len(names) else None
    return name or f"dimension {dimension}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
