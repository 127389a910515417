"""Random Qwen3 models of a few sizes as Hugging Face directories, and prompts of an exact number of tokens.

Not Qwen2: beside such a config, transformers 5 reads every tokenizer as Qwen2's own, under which the words of
the embedded one fall apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdft_jax.data.encoding import render, student_messages, tokenize
from sdft_jax.data.examples import Example
from sdft_jax.models import Model, ModelConfig, config_from_dict, save_pretrained
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
"""By their parameters, those of 0.5B and more as Qwen2.5's. Where nothing else is said, heads are 32 wide (64
from a width of 512 on, 128 from 1,536 on), key-value heads are 2, and embeddings are tied."""
SCALE = 3.0
"""Of the weights: untrained ones give flat distributions, and student and teacher would hardly differ."""


def architecture(size: str, **changes: Any) -> ModelConfig:
    """The model of a size, with keys of its config.json added or changed."""
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
    return config_from_dict({**shape, **SIZES[size], **changes})


def write_model(size: str, directory: str | Path) -> int:
    """A random model with the embedded tokenizer; returns its number of parameters."""
    tokenizer = load_tokenizer(model_directory("mini"))
    model = Model(architecture(size, eos_token_id=tokenizer.eos_token_id))
    params = jax.tree.map(lambda p: SCALE * p if np.ptp(p) else p, model.init(jax.random.key(0)))
    save_pretrained(model, params, tokenizer, directory)
    return sum(p.size for p in jax.tree.leaves(params))


def write_rows(model: str | Path, file: Path, count: int, prompt: int, demonstration: int) -> None:
    """JSON lines with random words: prompts of `prompt` tokens in the chat template, demonstrations likewise.

    Args:
        model: directory with the embedded tokenizer, for which a word is a token.
        file: to write.
        count: of rows.
        prompt: tokens of every prompt, at least those of the chat template and one.
        demonstration: tokens of every demonstration.
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
