"""Random Qwen3 models of several sizes as Hugging Face directories, and prompts with an exact token count.

The models are not Qwen2: with a Qwen2 config, transformers 5 loads every tokenizer as Qwen2's tokenizer,
which splits the words of the embedded one into several tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdft_jax.data.encoding import student_messages, tokenize
from sdft_jax.data.examples import Example
from sdft_jax.files import render
from sdft_jax.models import Architecture, Model, architecture_from_dict, save_pretrained
from sdft_jax.models.hf.hub import model_directory
from sdft_jax.models.hf.tokenizer import load_tokenizer

SIZES: Mapping[str, Mapping[str, Any]] = {
    "0.2M": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 2048},
    "1M": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "vocab_size": 2048},
    "4M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 4096},
    "32M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 8192},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151936},
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "vocab_size": 152064,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""Number of parameters -> keys of config.json; sizes of 0.5B and more have the dimensions of Qwen2.5. By
default, the head dimension is 32 (64 for a hidden size of at least 512, 128 for at least 1,536), there are 2
key-value heads, and embeddings are tied."""
SCALE = 3.0
"""The scale of the weights; without it, distributions are flat and student and teacher hardly differ."""


def architecture(size: str, **changes: Any) -> Architecture:
    """Return the config of a model of this size, with the keys in `changes` added or replaced."""
    width = SIZES[size]["hidden_size"]
    head_dim = 32 if width < 512 else 64 if width < 1536 else 128
    shape: dict[str, Any] = dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        num_attention_heads=width // head_dim,
        head_dim=head_dim,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        tie_word_embeddings=True,
        hidden_act="silu",
        torch_dtype="float32",
    )
    return architecture_from_dict({**shape, **SIZES[size], **changes})


def write_model(size: str, directory: str | Path) -> int:
    """Write a random model with the embedded tokenizer, and return its number of parameters."""
    tokenizer = load_tokenizer(model_directory("mini"))
    model = Model(architecture(size, eos_token_id=tokenizer.eos_token_id))
    params = jax.tree.map(lambda p: SCALE * p if np.ptp(p) else p, model.init(jax.random.key(0)))
    save_pretrained(model, params, tokenizer, directory)
    return sum(p.size for p in jax.tree.leaves(params))


def write_rows(model: str | Path, file: Path, count: int, prompt: int, demonstration: int) -> None:
    """Write JSON lines with prompts and demonstrations of random words.

    Args:
        model: a directory with the embedded tokenizer, in which each word is one token.
        file: the file to write.
        count: the number of rows.
        prompt: the number of tokens in each prompt, including the chat template; larger than its length.
        demonstration: the number of tokens in each demonstration, without the chat template.
    """
    tokenizer, rng = load_tokenizer(str(model)), np.random.default_rng(0)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha())
    frame = len(tokenize(tokenizer, render(tokenizer, student_messages(_row("")), {})))
    lengths = {"prompt": prompt - frame, "demonstration": demonstration}
    rows = [
        {name: " ".join(rng.choice(words, length)) for name, length in lengths.items()} for _ in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _row(prompt: str) -> Example:
    nothing: Any = None
    return Example(prompt, "", nothing, 0, "bench")
