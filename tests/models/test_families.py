"""Logits of every family and variant compared with transformers, and the layout of every tensor."""

import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import make_fixtures
from make_fixtures import (
    CASES,
    DIRECTORY,
    tokens_and_mask,
    transformers_logits,
    write_transformers_gradients,
)
from sdft_jax.models import FAMILIES, Model, architecture_from_dict, load_model
from sdft_jax.models.families import (
    DELTA_PARAMETERS,
    DELTA_PROJECTIONS,
    EXPERTS,
    FULL_ATTENTION,
    FUSED_PROJECTIONS,
    GEMMA4_MIXTURE,
    GPT_OSS_MIXTURE,
    LAYER_EMBEDDINGS,
    LAYER_INPUT,
    LAYER_SCALAR,
    PROJECTIONS,
    QKV_BIASES,
    ROUTER,
    SHARED_GATE,
    SINKS,
    WIDE_FEED_FORWARD,
    WRAPPERS,
)
from sdft_jax.models.hf.writing import save_pretrained
from sdft_jax.types import Sequences

TOLERANCE = 2e-4
ALONE_TOLERANCE = 1e-4
MINISTRAL_ROPE = CASES["ministral3"]["rope_parameters"]
PHI_ROPE = CASES["phi4_mini"]["rope_scaling"]
GEMMA_ROPES = CASES["gemma4"]["rope_parameters"]
logits_of = jax.jit(Model.logits, static_argnums=0)


def stored_logits(case):
    return np.load(DIRECTORY / case / "logits.npz")["logits"]


def logits_without_padding(model, params, tokens, mask):
    """Return the logits of the real tokens, each row beginning at the first column.

    The tokens that follow a row have no influence: these are the logits of the row alone.
    """
    order = np.argsort(~mask, axis=1, kind="stable")
    moved = Sequences(*(np.take_along_axis(x, order, axis=1) for x in (tokens, mask)))
    return np.asarray(logits_of(model, params, moved))[moved.mask]


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case):
    model, params = load_model(DIRECTORY / case)
    tokens, mask = tokens_and_mask()
    logits = np.asarray(logits_of(model, params, Sequences(tokens, mask)))[mask]
    alone = logits_without_padding(model, params, tokens, mask)
    np.testing.assert_allclose(logits, alone, rtol=0, atol=ALONE_TOLERANCE)
    stored = stored_logits(case)
    assert stored.std() > 0.5
    assert np.abs(logits - stored).max() <= TOLERANCE
    if importlib.util.find_spec("torch"):
        assert np.abs(logits - transformers_logits(DIRECTORY / case)[mask]).max() <= TOLERANCE


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="requires torch")
def test_logits_of_sequences_longer_than_two_chunks_of_the_delta_rule(monkeypatch):
    monkeypatch.setattr(make_fixtures, "LENGTH", 150)
    tokens, mask = tokens_and_mask()
    model, params = load_model(DIRECTORY / "qwen35")
    logits = np.asarray(logits_of(model, params, Sequences(tokens, mask)))
    assert np.abs(logits - transformers_logits(DIRECTORY / "qwen35"))[mask].max() <= TOLERANCE
    alone = logits_without_padding(model, params, tokens, mask)
    np.testing.assert_allclose(logits[mask], alone, rtol=0, atol=ALONE_TOLERANCE)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="requires torch")
@pytest.mark.parametrize("case", ["qwen2", "gpt_oss", "phi4_mini", "qwen35_moe", "gemma4_moe", "gemma4_e"])
def test_gradients_equal_those_of_transformers(case, tmp_path):
    """Except those of Gemma 4's layer_scalar, which is a buffer in transformers; rounding is up to 1.2e-5."""
    model, params = load_model(DIRECTORY / case)
    tokens, mask = tokens_and_mask()
    weights = np.float32(mask[:, 1:] & mask[:, :-1])

    def loss(params):
        logprobs = jax.nn.log_softmax(model.logits(params, Sequences(tokens, mask))[:, :-1])
        return -jnp.sum(weights * jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=2)[..., 0])

    save_pretrained(model, jax.jit(jax.grad(loss))(params), None, tmp_path / "own", dtype="float32")
    write_transformers_gradients(DIRECTORY / case, tmp_path / "theirs")
    own, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "theirs"))
    assert own.keys() == theirs.keys()
    for name, expected in theirs.items():
        if not name.endswith("layer_scalar"):
            assert np.linalg.norm(own[name] - expected) <= 5e-5 * np.linalg.norm(expected), name


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="requires torch")
def test_longrope_has_the_frequencies_of_each_row(tmp_path, monkeypatch):
    """Rows of 33, 25 and 40 tokens, the original length being 33; transformers reads them one by one."""
    shutil.copytree(DIRECTORY / "phi4_mini", tmp_path, dirs_exist_ok=True)
    config = CASES["phi4_mini"] | {"original_max_position_embeddings": 33}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens, mask = tokens_and_mask()
    assert mask.sum(axis=1).tolist() == [33, 25, 40]
    logits = np.asarray(logits_of(*load_model(tmp_path), Sequences(tokens, mask)))
    for row in range(3):
        alone = tokens[row : row + 1], mask[row : row + 1]
        monkeypatch.setattr(make_fixtures, "tokens_and_mask", lambda alone=alone: alone)
        theirs = transformers_logits(tmp_path)[0]
        assert np.abs(logits[row] - theirs)[mask[row]].max() <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("qwen3", {"rope_theta": 1000000}),
        ("llama31", {"rope_scaling": None}),
        ("qwen2_yarn", {"rope_scaling": None}),
        ("olmo3", {"sliding_window": 7}),
        ("gemma3", {"rope_local_base_freq": 1000000}),
        ("mistral", {"sliding_window": 7}),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("qwen3_moe_mixed", {"sliding_window": 7}),
        ("qwen35_moe", {"num_experts_per_tok": 2}),
        ("gemma4_moe", {"top_k_experts": 2}),
        ("gpt_oss", {"sliding_window": 7}),
        ("gpt_oss", {"swiglu_limit": 7.0}),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}),
        ("ministral3", {"rope_parameters": MINISTRAL_ROPE | {"llama_4_scaling_beta": 0.0}}),
        ("ministral3", {"rope_parameters": MINISTRAL_ROPE | {"mscale_all_dim": 1.0}}),
        ("qwen35", {"rope_parameters": {"rope_theta": 10000000, "partial_rotary_factor": 0.5}}),
        ("phi3", {"sliding_window": None}),
        ("phi4_mini", {"rope_scaling": PHI_ROPE | {"long_factor": [1.3, 2.5]}}),
        ("phi4_mini", {"rope_scaling": PHI_ROPE | {"attention_factor": 1.0}}),
        ("gemma4", {"sliding_window": 7}),
        ("gemma4", {"final_logit_softcapping": None}),
        ("gemma4", {"rope_parameters": GEMMA_ROPES | {"full_attention": GEMMA_ROPES["sliding_attention"]}}),
    ],
)
def test_a_wrong_rope_window_or_softcap_changes_the_logits(case, change):
    tokens, mask = tokens_and_mask()
    _, params = load_model(DIRECTORY / case)
    model = Model(architecture_from_dict({**CASES[case], **change}))
    logits = np.asarray(logits_of(model, params, Sequences(tokens, mask)))[mask]
    assert np.abs(logits - stored_logits(case)).max() > 100 * TOLERANCE


def test_the_fixtures_have_the_configurations_of_the_script():
    for case, config in CASES.items():
        assert json.loads((DIRECTORY / case / "config.json").read_text()) == config


def test_every_family_is_compared_with_transformers():
    assert {architecture_from_dict(config).family.model_type for config in CASES.values()} == set(FAMILIES)
    assert {config["model_type"] for config in CASES.values()} == {*FAMILIES, *WRAPPERS}


TENSORS = [
    *PROJECTIONS,
    *FULL_ATTENTION,
    LAYER_SCALAR,
    *FUSED_PROJECTIONS,
    *QKV_BIASES,
    *DELTA_PROJECTIONS,
    *DELTA_PARAMETERS,
    ROUTER,
    *EXPERTS,
    SHARED_GATE,
    *GEMMA4_MIXTURE,
    *GPT_OSS_MIXTURE,
    SINKS,
    *WIDE_FEED_FORWARD,
    *LAYER_EMBEDDINGS,
    *LAYER_INPUT,
]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: tensor.name)
def test_to_stored_is_the_inverse_of_from_stored(tensor):
    sizes = {"D": 6, "N": 4, "K": 2, "H": 3, "F": 5, "V": 7, "G": 4, "P": 3, "C": 20, "S": 4, "1": 1}
    sizes |= {"W": 24, "U": 10, "Y": 2, "E": 3, "M": 2, "J": 1, "X": 8, "L": 3, "A": 4, "Z": 12}
    stored = np.arange(np.prod(tensor.stored_shape(sizes))).reshape(tensor.stored_shape(sizes))
    loaded = tensor.from_stored(stored, sizes)
    assert loaded.shape == tensor.shape(sizes)[1 if tensor.per_expert else 0 :]
    assert len(tensor.axes) == loaded.ndim + tensor.per_expert
    assert np.shares_memory(loaded, stored)
    np.testing.assert_array_equal(tensor.to_stored(loaded, sizes), stored)


def test_a_projection_equals_torch_linear():
    sizes = {"D": 6, "N": 4, "H": 3}
    weight = np.random.default_rng(0).normal(size=(12, 6))
    x = np.random.default_rng(1).normal(size=6)
    q = PROJECTIONS[0].from_stored(weight, sizes)
    np.testing.assert_allclose(np.einsum("d,dnh->nh", x, q).ravel(), weight @ x)
