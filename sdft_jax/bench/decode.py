"""Greedy decoding against transformers.generate on the same weights: `sdft bench decode DIR`.

Needs PyTorch (`pip install -e '.[parity]'`). Prints tokens per second of both and their ratio.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax
import numpy as np

from sdft_jax.bench.timing import paired, ratio
from sdft_jax.hub import model_directory
from sdft_jax.models import load_model
from sdft_jax.report import hardware
from sdft_jax.sampling import generate


def main(words: Sequence[str]) -> None:
    """Run with the sizes of the command line."""
    parser = argparse.ArgumentParser(prog="sdft bench decode", description=__doc__)
    parser.add_argument("model", nargs="?", default="mini", help="Hugging Face directory")
    for name, default in dict(batch=8, prompt=64, new=64).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args(words)
    import torch
    from transformers import AutoModelForCausalLM

    directory = model_directory(a.model)
    model, params = load_model(directory)
    peer = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    peer.generation_config.eos_token_id = None  # both sides go on to the end
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, size=(a.batch, a.prompt))
    mask = np.ones_like(tokens, bool)

    def ours() -> jax.Array:
        return jax.block_until_ready(
            generate(
                model, params, tokens, mask, key=jax.random.key(0), max_new_tokens=a.new, temperature=0.0
            ).tokens
        )

    def theirs():
        with torch.no_grad():
            return peer.generate(
                torch.as_tensor(tokens), attention_mask=torch.as_tensor(mask), max_new_tokens=a.new,
                do_sample=False, pad_token_id=0,
            )[:, a.prompt :]  # fmt: skip

    print(f"{hardware()}, torch {torch.__version__} on {torch.get_num_threads()} threads\n{vars(a)}")
    same = float(np.mean(np.asarray(ours()) == theirs().numpy()))
    seconds = paired(ours, theirs)
    for name, times in zip(("sdft_jax", "transformers"), seconds, strict=True):
        print(f"{name:<13} {a.batch * a.new / sorted(times)[len(times) // 2]:9.0f} tokens/s")
    print(f"same tokens: {same:.3f}; sdft_jax is faster by {ratio(*seconds)}")
