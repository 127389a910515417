"""Sharding rules: the mesh axes that split each logical axis. They are plain data and do not need JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from sdft_jax.errors import SdftError, explained

MESH_AXES = ("data", "fsdp", "expert", "tensor")

MeshAxes = str | tuple[str, ...] | None


def mesh_axes(entry: MeshAxes) -> tuple[str, ...]:
    """Return the mesh axes of one rule as a tuple."""
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


@explained("sharding")
@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Rules:
    """The mesh axes that split each logical axis; None does not split it."""

    batch: MeshAxes = ("data", "fsdp", "expert")
    """Rows of a batch, in activations and in the KV cache."""
    sequence: MeshAxes = None
    """Token positions of activations. `tensor` splits the residual stream and its norms over positions
    (sequence parallelism; Korthikanti et al. 2022); attention and feed-forward, which need that mesh axis,
    see whole sequences."""
    embed: MeshAxes = "fsdp"
    """Model width of parameters."""
    activation: MeshAxes = None
    """Model width of activations."""
    heads: MeshAxes = "tensor"
    """Query heads."""
    kv_heads: MeshAxes = "tensor"
    """Key and value heads."""
    full_kv_heads: MeshAxes = "tensor"
    """Key and value heads of full attention in Gemma 4, of which there are fewer. None replicates them."""
    mlp: MeshAxes = "tensor"
    """Hidden width of the feed-forward block, and of each expert."""
    experts: MeshAxes = "expert"
    """Experts of a mixture; each device computes its own experts for the rows of all devices along this
    axis."""
    vocab: MeshAxes = "tensor"
    """Rows of the embedding and of the head."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            for axis in mesh_axes(getattr(self, field.name)):
                if axis not in MESH_AXES:
                    known = ", ".join(MESH_AXES)
                    raise SdftError(
                        f"sharding.{field.name}: the mesh has no axis {axis!r}: use one of {known}."
                    )


def without_axes(rules: Rules, absent: Collection[str]) -> Rules:
    """Return the rules without these mesh axes."""
    changes: dict[str, MeshAxes] = {}
    for field in dataclasses.fields(rules):
        entry = getattr(rules, field.name)
        kept = tuple(axis for axis in mesh_axes(entry) if axis not in absent)
        if kept != mesh_axes(entry):
            changes[field.name] = kept or None
    return dataclasses.replace(rules, **changes)
