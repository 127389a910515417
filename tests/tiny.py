"""A decoder small enough for every test, and batches for it."""

import jax
import numpy as np

from sdft_jax.models import Model, config_from_dict
from sdft_jax.types import TokenBatch

VOCABULARY, EOS, PAD = 32, 1, 0

QWEN3 = dict(
    architectures=["Qwen3ForCausalLM"],
    model_type="qwen3",
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=False,
    hidden_act="silu",
)


def tiny_model(sharding=None, scale=8.0, **changes):
    """A random model whose logits differ (weights `scale` times larger than an untrained one's)."""
    model = Model(config_from_dict(QWEN3 | changes), sharding=sharding)
    params = jax.tree.map(lambda p: p * scale if np.ptp(p) else p, model.init(jax.random.key(0)))
    return model, params


def ragged(rng, rows, width, low=3):
    """Left-padded random prompts."""
    lengths = rng.integers(low, width + 1, size=rows)
    mask = np.arange(width)[None, :] >= width - lengths[:, None]
    tokens = rng.integers(2, VOCABULARY, size=(rows, width))
    return np.where(mask, tokens, PAD).astype(np.int32), mask


def tiny_batch(rows=8, prompt=6, teacher=10, completion=0, seed=0):
    rng = np.random.default_rng(seed)
    prompts, prompt_mask = ragged(rng, rows, prompt)
    teacher_prompts, teacher_mask = ragged(rng, rows, teacher)
    demonstrations, mask = (
        ragged(rng, rows, max(completion, 3)) if completion else (prompts[:, :0], prompt_mask[:, :0])
    )
    return TokenBatch(
        prompt=prompts,
        prompt_mask=prompt_mask,
        teacher_prompt=teacher_prompts,
        teacher_mask=teacher_mask,
        demonstration=np.ascontiguousarray(demonstrations[:, ::-1]),
        demonstration_mask=np.ascontiguousarray(mask[:, ::-1]),
        row=np.arange(rows, dtype=np.int32),
        weight=np.ones(rows, np.float32),
    )
