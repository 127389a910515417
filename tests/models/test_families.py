"""Logits of every family and variant compared with transformers, and the layout of every tensor."""

import importlib.util
import json

import jax
import numpy as np
import pytest

import make_fixtures
from make_fixtures import CASES, DIRECTORY, tokens_and_mask, transformers_logits
from sdft_jax.models import FAMILIES, Model, architecture_from_dict, load_model
from sdft_jax.models.families import (
    DELTA_PARAMETERS,
    DELTA_PROJECTIONS,
    FULL_ATTENTION,
    LAYER_SCALAR,
    PROJECTIONS,
    QKV_BIASES,
    WRAPPERS,
)
from sdft_jax.types import Sequences

TOLERANCE = 2e-4
MINISTRAL_ROPE = CASES["ministral3"]["rope_parameters"]
GEMMA_ROPES = CASES["gemma4"]["rope_parameters"]
logits_of = jax.jit(Model.logits, static_argnums=0)


def stored_logits(case):
    return np.load(DIRECTORY / case / "logits.npz")["logits"]


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case):
    model, params = load_model(DIRECTORY / case)
    tokens, mask = tokens_and_mask()
    logits = np.asarray(logits_of(model, params, Sequences(tokens, mask)))[mask]
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


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("qwen3", {"rope_theta": 1000000}),
        ("llama31", {"rope_scaling": None}),
        ("qwen2_yarn", {"rope_scaling": None}),
        ("olmo3", {"sliding_window": 7}),
        ("gemma3", {"rope_local_base_freq": 1000000}),
        ("mistral", {"sliding_window": 7}),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}),
        ("ministral3", {"rope_parameters": MINISTRAL_ROPE | {"llama_4_scaling_beta": 0.0}}),
        ("ministral3", {"rope_parameters": MINISTRAL_ROPE | {"mscale_all_dim": 1.0}}),
        ("qwen35", {"rope_parameters": {"rope_theta": 10000000, "partial_rotary_factor": 0.5}}),
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


TENSORS = [*PROJECTIONS, *FULL_ATTENTION, *QKV_BIASES, *DELTA_PROJECTIONS, *DELTA_PARAMETERS, LAYER_SCALAR]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: tensor.name)
def test_to_stored_is_the_inverse_of_from_stored(tensor):
    sizes = {"D": 6, "N": 4, "K": 2, "H": 3, "F": 5, "V": 7, "J": 1, "W": 8}
    sizes |= {"G": 4, "P": 3, "C": 20, "S": 4, "1": 1}
    stored = np.arange(np.prod(tensor.stored_shape(sizes))).reshape(tensor.stored_shape(sizes))
    loaded = tensor.from_stored(stored, sizes)
    assert loaded.shape == tensor.shape(sizes)
    assert len(tensor.axes) == loaded.ndim
    assert np.shares_memory(loaded, stored)
    np.testing.assert_array_equal(tensor.to_stored(loaded, sizes), stored)


def test_a_projection_equals_torch_linear():
    sizes = {"D": 6, "N": 4, "H": 3}
    weight = np.random.default_rng(0).normal(size=(12, 6))
    x = np.random.default_rng(1).normal(size=6)
    q = PROJECTIONS[0].from_stored(weight, sizes)
    np.testing.assert_allclose(np.einsum("d,dnh->nh", x, q).ravel(), weight @ x)
