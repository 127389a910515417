"""Sharding rules: which mesh axes split which logical axis. Plain data; `sharding.py` applies them."""

from __future__ import annotations

import dataclasses

from sdft_jax.errors import SdftError

MESH_AXES = ("data", "fsdp", "tensor")

MeshAxes = str | tuple[str, ...] | None


def mesh_axes(entry: MeshAxes) -> tuple[str, ...]:
    """The mesh axes of one rule as a tuple."""
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


@dataclasses.dataclass(frozen=True)
class Rules:
    """Mesh axes over which each logical axis is split; None keeps it whole on every device."""

    batch: MeshAxes = ("data", "fsdp")
    """Rows of a batch, in activations and in the KV cache."""
    sequence: MeshAxes = None
    """Token positions of activations; whole in attention and feed-forward where those need its mesh axis, so
    that `tensor` splits the residual stream and its norms (sequence parallelism; Korthikanti et al. 2022)."""
    embed: MeshAxes = "fsdp"
    """Model width, in parameters."""
    activation: MeshAxes = None
    """Model width, in activations."""
    heads: MeshAxes = "tensor"
    """Query heads."""
    kv_heads: MeshAxes = "tensor"
    """Key and value heads."""
    mlp: MeshAxes = "tensor"
    """Hidden width of the feed-forward block."""
    vocab: MeshAxes = "tensor"
    """Rows of the embedding and of the head."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            for axis in mesh_axes(getattr(self, field.name)):
                if axis not in MESH_AXES:
                    known = ", ".join(MESH_AXES)
                    raise SdftError(
                        f"sharding.{field.name}: there is no mesh axis {axis!r}; they are {known}."
                    )
