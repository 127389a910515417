"""Choices that depend on the platform and need no kernel of their own."""

from __future__ import annotations

UNROLLED = 8
"""The largest number of layers that a CPU decodes without a scan; each such layer adds 0.1 s to
compilation."""


def unrolls_layers(platform: str, layers: int) -> bool:
    """Return True if decoding runs the layers one by one instead of in a `lax.scan`.

    In a scan, a GPU and a CPU copy each layer's weights and cache for every token (a GPU moves 13.0 instead
    of 5.4 GiB for a token of a 1.5B model with 64 rows, counted in the compiled
    program); a TPU reads them in place.
    """
    return platform == "gpu" or (platform == "cpu" and layers <= UNROLLED)
