"""Side-by-side measurements, each against a named peer or a physical limit in the same run: `sdft bench`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

BENCHES = {
    "trl": "a whole training step against TRL's SDFTTrainer: seconds and memory",
    "decode": "greedy decoding against transformers.generate and the memory's bandwidth: tokens a second",
    "divergence": "the chunked divergence against its head products and whole logits: seconds and memory",
    "train": "teacher forward, student forward and backward against a large matrix product: FLOP/s",
    "sft": "a whole step of SDFT against one of SFT: seconds and FLOPs",
    "loop": "a step of the training loop against its update alone: seconds between steps",
    "startup": "the console command, a first step and a resume, compilation against depth: seconds",
    "gpu": "decoding as the GPU compiler sees it: bytes that a token moves against those it has to",
    "tpu": "the whole update as the TPU compiler sees it: memory and estimated seconds, beside peak rates",
}
"""Name -> what is measured; `main(words)` of `sdft_jax.studies.bench.NAME` measures it,
and may return an exit code."""


def run(name: str, words: Sequence[str]) -> int:
    """Run one measurement with the words that follow its name; returns the exit code."""
    return importlib.import_module(f"sdft_jax.studies.bench.{name}").main(words) or 0
