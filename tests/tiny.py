"""A decoder small enough for every test, its learner, and batches for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdft_jax.algorithm import join, make_learner
from sdft_jax.config import load_config
from sdft_jax.config.settings import LoraConfig
from sdft_jax.models import Model, architecture_from_dict
from sdft_jax.models.hf.reading import entries, plain_parameter
from sdft_jax.models.lora import adapter_params, make_lora
from sdft_jax.models.quantize import quantize_params
from sdft_jax.sharding import Sharding, make_mesh, single_device
from sdft_jax.types import Sequences, StopTokens, TokenBatch

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


QWEN35 = dict(
    architectures="Qwen3_5ForCausalLM",
    model_type="qwen3_5_text",
    full_attention_interval=2,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
"""The changes of a model with one gated delta net and one layer of attention."""

_FOUR_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
EXPERTS = dict(
    architectures="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    norm_topk_prob=True,
    **_FOUR_EXPERTS,
)
"""The changes of a model with experts."""
QWEN35_MOE = {
    **QWEN35,
    "architectures": "Qwen3_5MoeForCausalLM",
    "model_type": "qwen3_5_moe_text",
    "shared_expert_intermediate_size": 32,
    **_FOUR_EXPERTS,
}
"""The changes of QWEN35 with experts and a shared one in each layer."""

GEMMA4_E = dict(
    architectures="Gemma4ForCausalLM",
    model_type="gemma4_text",
    num_hidden_layers=8,
    layer_types=("sliding_attention", "full_attention") * 4,
    hidden_activation="gelu_pytorch_tanh",
    attention_k_eq_v=True,
    global_head_dim=16,
    num_global_key_value_heads=2,
    num_key_value_heads=4,
    sliding_window=5,
    final_logit_softcapping=4.0,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=VOCABULARY,
    num_kv_shared_layers=4,
    use_double_wide_mlp=True,
    enable_moe_block=True,
    top_k_experts=2,
    **_FOUR_EXPERTS,
)
"""The changes of a model with two periods of sliding and full attention, whose heads differ, and two that
share the keys and values of the second one; with experts beside the dense feed-forward."""
GPT_OSS = dict(
    architectures="GptOssForCausalLM",
    model_type="gpt_oss",
    num_local_experts=4,
    num_experts_per_tok=2,
    intermediate_size=16,
    attention_bias=True,
    sliding_window=5,
    layer_types=("sliding_attention", "full_attention"),
    swiglu_limit=1.5,
)
"""The changes of a model with experts, biases and sinks."""


def tiny_model(sharding=None, scale=8.0, **changes):
    """Return a random model and its parameters, scaled up by `scale` so that its logits differ."""
    model = Model(architecture_from_dict(QWEN3 | changes), sharding=sharding or single_device())
    params = jax.tree.map(lambda p: p * scale if np.ptp(p) else p, model.init(jax.random.key(0)))
    return model, params


RANK_4 = LoraConfig(rank=4)


@functools.partial(jax.jit, static_argnums=0)
def initial_adapters(model):
    """Return random adapters; without the base, which a compiled program does not compute."""
    return adapter_params(model.init(jax.random.key(1)))


def adapted(model, params, options=RANK_4, scale=0.5):
    """Return the model with adapters, and its parameters with random ones; with `scale=0` as initially."""
    lora = make_lora(options, model.architecture.sizes, model.architecture.projections)
    architecture = dataclasses.replace(model.architecture, lora=lora, quantize=options.quantize)
    model = dataclasses.replace(model, architecture=architecture)
    leaves, treedef = jax.tree.flatten(initial_adapters(model))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        x if np.any(x) else scale * jax.random.normal(key, x.shape)
        for x, key in zip(leaves, keys, strict=True)
    ]
    params = quantize_params(params, options.quantize) if options.quantize else params
    return model, join(params, jax.tree.unflatten(treedef, leaves))


def merged(model, params):
    """Return the parameters of a plain model with the adapters merged, as an export writes them."""
    tree = {"layers": {}}
    for entry in entries(model.architecture.merged):
        layers = range(entry.layers) if entry.layers else (None,)
        parts = [plain_parameter(model, params, entry, layer) for layer in layers]
        entry.put(tree, jnp.concatenate(parts) if entry.layers else parts[0])
    return tree


def assert_decoding_equals_full_forward(model, params):
    """Compare the hidden states of decoding with a cache with those of the whole sequences."""
    rng = np.random.default_rng(0)
    prompt = jax.tree.map(jnp.asarray, ragged(rng, 3, 6))
    new = jnp.asarray(rng.integers(2, VOCABULARY, size=(3, 4)), jnp.int32)
    tokens = jnp.concatenate([prompt.tokens, new], axis=1)
    whole = Sequences(tokens, jnp.concatenate([prompt.mask, new > 0], axis=1))
    expected = jax.jit(model.hidden_states)(params, whole)[:, 6:]
    _, cache = jax.jit(model.prefill, static_argnums=2)(params, prompt, 10)
    decode = jax.jit(model.decode)
    for step in range(4):
        hidden, cache = decode(params, new[:, step], cache)
        np.testing.assert_allclose(hidden, expected[:, step], atol=1e-5, rtol=1e-5)


def tiny_learner(*overrides, mesh=None, eos_ids=(EOS,), steps=10, **changes):
    """Return a learner of the tiny model with these settings on a mesh, and the model's parameters.

    `changes` are those of `tiny_model`.
    """
    config = load_config(None, ["model.compute_dtype=float32", "train.batch_size=8", *overrides])
    sharding = single_device() if mesh is None else Sharding(make_mesh(*mesh), config.sharding)
    model, params = tiny_model(sharding, **changes)
    if config.lora.rank:
        model, params = adapted(model, params, config.lora, scale=0)
    return make_learner(config, model, steps, StopTokens(eos_ids, PAD)), params


def ragged(rng, rows, width, low=3):
    """Return left-padded random prompts of `low` to `width` tokens."""
    lengths = rng.integers(low, width + 1, size=rows)
    mask = np.arange(width)[None, :] >= width - lengths[:, None]
    tokens = rng.integers(2, VOCABULARY, size=(rows, width))
    return Sequences(np.where(mask, tokens, PAD).astype(np.int32), mask)


def tiny_batch(rows=8, prompt=6, teacher=10, completion=0, seed=0):
    """Return a batch of random prompts, with random targets if `completion` is positive."""
    rng = np.random.default_rng(seed)
    prompts = ragged(rng, rows, prompt)
    teacher_prompts = ragged(rng, rows, teacher)
    reversed_targets = (
        ragged(rng, rows, max(completion, 3))
        if completion
        else Sequences(prompts.tokens[:, :0], prompts.mask[:, :0])
    )
    return TokenBatch(
        prompt=prompts,
        teacher_prompt=teacher_prompts,
        target=jax.tree.map(lambda x: np.ascontiguousarray(x[:, ::-1]), reversed_targets),
        row=np.arange(rows, dtype=np.int32),
        weight=np.ones(rows, np.float32),
    )
