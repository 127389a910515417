"""A plot of how arrays are sharded: the shards of each array and the devices that store them."""

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
from sdft_jax.reporting.style import COLOURS, STYLE, save_figure

SHADES = (*COLOURS, *(f"{color}60" for color in COLOURS))
"""Color of each device by its id. The colors repeat after the last one; the plot also shows the ids."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """The shards of one array and the devices that store them."""

    split: Sequence[int]
    """The dimensions that are sharded."""
    devices: np.ndarray
    """Ids of the devices that store each shard, [shards along each dimension of `split`..., replicas]."""
    local_bytes: int
    """Size of one shard, in bytes."""
    bytes: int
    """Size of the whole array, in bytes."""


def placement(array: Any) -> Placement:
    """Return the placement of an object with a shape, a dtype and a sharding, such as a `jax.Array`."""
    shape = tuple(array.shape)
    holders: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for device, index in array.sharding.devices_indices_map(shape).items():
        holders[tuple(cut.start or 0 for cut in index)].append(device.id)
    starts = [sorted({start[axis] for start in holders}) for axis in range(len(shape))]
    split = [axis for axis, offsets in enumerate(starts) if len(offsets) > 1]
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
    """Plot one panel per array: its shards, separated by black lines, with the devices that store them.

    Only sharded dimensions are drawn: the first one vertically, all others together horizontally. If a shard
    shows several devices, each of them stores a replica.

    Args:
        arrays: title -> object with a shape, a dtype and a sharding, such as a `jax.ShapeDtypeStruct`.
        out: PNG file to write.
        caption: text below the panels.
        dimensions: title -> names of the dimensions of the array; dimensions without a name are numbered.

    Raises:
        SdftError: there are no arrays.
    """
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would replace the backend of a notebook

    if not arrays:
        raise SdftError(f"{out}: there is nothing to draw. Pass at least one array.")
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
        save_figure(figure, out, dpi=100)


def _draw(axis: Any, title: str, array: Any, names: Sequence[str | None]) -> None:
    from matplotlib.patches import Rectangle

    layout = placement(array)
    replicas = layout.devices.shape[-1]
    rows = layout.devices.shape[0] if layout.split else 1
    shards = layout.devices.reshape(rows, -1, replicas)
    height, width = 1 / rows, 1 / shards.shape[1]
    for (row, column, replica), device in np.ndenumerate(shards):
        place = (column * width + replica * width / replicas, row * height)
        axis.add_patch(
            Rectangle(place, width / replicas, height, facecolor=SHADES[device % len(SHADES)], linewidth=0)
        )
        middle = (place[0] + width / replicas / 2, place[1] + height / 2)
        axis.text(*middle, str(device), ha="center", va="center", fontsize=9)
    for row, column in np.ndindex(shards.shape[:2]):
        axis.add_patch(Rectangle((column * width, row * height), width, height, fill=False, linewidth=2))
    axis.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    label = [f"{_name(names, dimension)} {array.shape[dimension]}" for dimension in layout.split]
    axis.set_ylabel(label[0] if label else "")
    axis.set_xlabel(" x ".join(label[1:]))
    kind = f"{jnp.dtype(array.dtype).name}[{', '.join(map(str, array.shape))}]"
    stored = f"{_size(layout.local_bytes)} of {_size(layout.bytes)} per device"
    axis.set_title(title, fontsize=10, pad=28)
    axis.text(
        0, 1.03, f"{kind}\n{stored}", transform=axis.transAxes, fontsize=8, color="#555555", va="bottom"
    )


def _name(names: Sequence[str | None], dimension: int) -> str:
    name = names[dimension] if dimension < len(names) else None
    return name or f"dimension {dimension}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
