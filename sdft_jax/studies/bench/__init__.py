"""The benchmarks of `sdft bench`, each compared with a named peer or a physical limit in the same run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from sdft_jax.errors import SdftError, reason

BENCHES = {
    "trl": "seconds and peak memory of a training step, compared with TRL's SDFTTrainer",
    "decode": "tokens per second of greedy decoding, compared with transformers and the memory bandwidth",
    "divergence": "seconds and memory of the chunked divergence, compared with its products and full logits",
    "train": "FLOP/s of the forward and backward passes, compared with a large matrix product",
    "sft": "seconds and FLOPs of an SDFT step, compared with an SFT step",
    "loop": "seconds of a step of the training loop, compared with its update alone",
    "checkpoint": "seconds from a save to its commit, compared with a commit that reads everything back",
    "startup": "seconds of the console command, of the first step, and of compilation by model depth",
    "gpu": "bytes that decoding moves per token when compiled for a GPU, compared with the minimum",
    "decode_tpu": "bytes and estimated seconds of a token when compiled for a TPU, compared with the minimum",
    "tpu": "memory and estimated seconds of the update compiled for a TPU, compared with peak rates",
}
"""Name -> description. `sdft_jax.studies.bench.NAME.main(argv)` runs the benchmark and may return an exit
code."""


def run(name: str, argv: Sequence[str]) -> int:
    """Run a benchmark with the command-line arguments after its name, and return the exit code.

    Raises:
        SdftError: the benchmark does not fit into memory, or cannot run on this machine.
    """
    from jax.errors import JaxRuntimeError

    from sdft_jax.training.out_of_memory import is_exhausted

    try:
        return importlib.import_module(f"sdft_jax.studies.bench.{name}").main(argv) or 0
    except (MemoryError, JaxRuntimeError) as error:
        if isinstance(error, JaxRuntimeError) and not is_exhausted(error):
            raise
        raise SdftError(f"sdft bench {name}: out of memory ({reason(error)}): give smaller sizes.") from error
