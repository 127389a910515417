"""Adapters: the same function as merged weights in every family, their initial values, and wrong settings."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from make_fixtures import CASES as CONFIGS
from make_fixtures import DIRECTORY, one_of_each_family, tokens_and_mask
from sdft_jax.algorithm import join
from sdft_jax.config.settings import LoraConfig
from sdft_jax.errors import SdftError
from sdft_jax.models import FAMILIES, Model, architecture_from_dict, load_model
from sdft_jax.models.families import EMBEDDING, FUSED_ATTENTION, FUSED_FEED_FORWARD, HEAD, PROJECTIONS
from sdft_jax.models.lora import (
    ADAPTABLE,
    adapter_params,
    base_params,
    factors,
    make_lora,
    split_product,
)
from sdft_jax.types import Sequences
from tiny import adapted, assert_decoding_equals_full_forward, merged, ragged, tiny_model

CASES = one_of_each_family(qwen3_moe="qwen3_moe_mixed")
SIZES = {"D": 6, "N": 4, "K": 2, "H": 3, "F": 5, "V": 7, "R": 2}
logits_of = jax.jit(Model.logits, static_argnums=0)


def test_every_family_is_among_the_cases():
    found = {architecture_from_dict(CONFIGS[case]).family.model_type for case in CASES}
    assert found == set(FAMILIES)


ALL = tuple(tensor.name for tensor in ADAPTABLE)
KINDS = ("qwen3", "gemma3", "gemma4", "phi3", "qwen35_moe", "gpt_oss")
"""One family of each kind: its projections are separate, scaled and tied, shared, fused, or experts'."""
PARTS = (("v|qkv", "down"), ("embed",), ("head",))


@pytest.mark.parametrize(
    ("case", "targets"), [*((case, ALL) for case in CASES), *itertools.product(KINDS, PARTS)], ids=str
)
def test_adapters_equal_merged_weights(case, targets):
    plain, base = load_model(DIRECTORY / case)
    if not any(tensor.name == "down" for tensor in plain.architecture.projections):
        # gpt-oss has experts only, without adapters
        targets = tuple(target for target in targets if target not in ("gate", "up", "down"))
    # larger adapters make a model whose logits move by 6e-5 of the largest if every weight moves by one ulp
    model, params = adapted(plain, base, LoraConfig(rank=3, targets=targets), scale=0.1)
    tokens, mask = tokens_and_mask()
    sequences = Sequences(tokens, mask)
    with_adapters = logits_of(model, params, sequences)[mask]
    expected = logits_of(plain, merged(model, params), sequences)[mask]
    np.testing.assert_allclose(with_adapters, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(with_adapters - logits_of(plain, base, sequences)[mask]).max() > 0.1


def test_a_tree_without_adapters_is_the_base():
    plain, base = tiny_model()
    model, params = adapted(plain, base)
    sequences = ragged(np.random.default_rng(0), 3, 7)
    expected = np.asarray(logits_of(plain, base, sequences))
    np.testing.assert_array_equal(logits_of(model, base_params(params), sequences), expected)
    assert all(
        one is other for one, other in zip(*map(jax.tree.leaves, (base_params(params), base)), strict=True)
    )
    initial = join(base, adapter_params(model.init(jax.random.key(1))))
    np.testing.assert_array_equal(logits_of(model, initial, sequences), expected)


def test_decoding_with_a_cache_equals_the_full_forward():
    model, params = adapted(*tiny_model(), LoraConfig(rank=4, targets=ALL))
    assert_decoding_equals_full_forward(model, params)


def test_initial_values_are_those_of_peft():
    """A is uniform within 1 / sqrt(inputs), B zero (`kaiming_uniform_` with a = sqrt(5) in torch).

    Those of the embedding are zero and standard normal.
    """
    model, _ = adapted(*tiny_model(), LoraConfig(rank=8, targets=ALL))
    params = model.init(jax.random.key(0))
    every = {**params, **params["layers"]}
    for name, inputs in {"q": 32, "o": 32, "down": 64, "head": 32}.items():
        values, bound = np.asarray(every[f"{name}_lora_a"]), inputs**-0.5
        assert 0.9 * bound < np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not np.any(every[f"{name}_lora_b"])
    assert not np.any(every["embed_lora_a"])
    assert np.std(every["embed_lora_b"]) == pytest.approx(1, rel=0.1)


def test_adapters_have_the_logical_axes_of_what_they_adapt():
    q, o = PROJECTIONS[0], PROJECTIONS[3]
    assert [factor.axes for factor in factors(q)] == [("embed", None), (None, "heads", None)]
    assert [factor.axes for factor in factors(o)] == [("heads", None, None), (None, "embed")]
    assert [factor.stored_shape(SIZES) for factor in factors(o)] == [(2, 12), (6, 2)]
    assert factors(o)[0].source == "self_attn.o_proj.lora_A.weight"
    assert [factor.axes for factor in factors(EMBEDDING)] == [("vocab", None), (None, "embed")]
    assert [factor.axes for factor in factors(HEAD)] == [("embed", None), ("vocab", None)]
    assert [factor.stored_shape(SIZES) for factor in factors(EMBEDDING)] == [(2, 7), (6, 2)]
    assert [factor.stored_shape(SIZES) for factor in factors(HEAD)] == [(2, 6), (7, 2)]


def test_the_base_has_the_compute_dtype_and_adapters_their_own():
    model, _ = adapted(*tiny_model())
    model = dataclasses.replace(model, compute_dtype="bfloat16")
    layers = model.abstract_params("float32")["layers"]
    assert {name: layers[name].dtype.name for name in ("q", "pre_mlp_norm", "q_lora_a")} == {
        "q": "bfloat16",
        "pre_mlp_norm": "bfloat16",
        "q_lora_a": "float32",
    }


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("btd,dnh->btnh", ("btd,dr->btr", "btr,rnh->btnh")),
        ("bthk,hkd->btd", ("bthk,hkr->btr", "btr,rd->btd")),
        ("btd,df->btf", ("btd,dr->btr", "btr,rf->btf")),
    ],
)
def test_two_narrow_products(spec, expected):
    assert split_product(spec) == expected


@pytest.mark.parametrize("stabilized", [False, True])
def test_scale(stabilized):
    lora = make_lora(LoraConfig(rank=4, alpha=12, rank_stabilized=stabilized), SIZES | {"D": 8, "H": 8})
    assert lora.scale == (6 if stabilized else 3)


@pytest.mark.parametrize("case", CASES)
def test_by_default_every_kind_of_layer_is_adapted(case):
    """All projections are, except those to one number per head: the rates of delta nets."""
    plain = architecture_from_dict(CONFIGS[case])
    lora = make_lora(LoraConfig(rank=2), plain.sizes, plain.projections)
    for kind in plain.kinds:
        names = {tensor.name for tensor in plain.projections_of(kind)}
        assert names - set(lora.targets) == ({"delta_a", "delta_b"} if kind.mixer == "gated_delta" else set())
    assert set(lora.targets) <= {tensor.name for tensor in plain.projections}


def test_targets_are_names_or_patterns():
    sizes = SIZES | {"D": 8, "H": 8}

    def targets(*patterns):
        return make_lora(LoraConfig(rank=1, targets=patterns), sizes).targets

    assert targets("down", "q") == ("q", "down")
    assert targets("[qv]", ".*p") == ("q", "v", "up")
    assert targets("head", "e.*") == ("embed", "head")
    assert targets("layers", "head") == ("q", "k", "v", "o", "gate", "up", "down", "head")
    gemma = architecture_from_dict(CONFIGS["gemma4"])
    lora = make_lora(LoraConfig(rank=1, targets=("q", "v")), gemma.sizes, gemma.projections)
    assert lora.targets == ("full_q", "q", "v")  # both are q_proj; the values of full layers are its keys
    assert make_lora(LoraConfig(), sizes) is None


def test_names_of_all_parts_of_a_fused_projection_select_it():
    sizes, fused = SIZES | {"D": 8, "W": 24, "Y": 2}, (*FUSED_ATTENTION, *FUSED_FEED_FORWARD)
    default = LoraConfig(rank=1)
    assert make_lora(default, sizes, fused).targets == ("qkv", "o", "gate_up", "down")
    for targets in (("qkv", "gate_up"), ("[qkv]", "qkv|g.*"), ("q", "k", "v", ".*up")):
        lora = make_lora(dataclasses.replace(default, targets=targets), sizes, fused)
        assert lora.targets == ("qkv", "gate_up")
    message = r"lora\.targets has q, v, but this model has one matrix for k, q, v: use qkv\."
    with pytest.raises(SdftError, match=message):
        make_lora(dataclasses.replace(default, targets=("q", "v")), sizes, fused)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"targets": ("q", "q_proj")},
            r"'q_proj' matches no projection: use layers, or some of q, k, v, o, gate, up, down, embed, head",
        ),
        ({"targets": ("(",)}, r"'\(' is not a regular expression \(.*\): fix the pattern"),
        ({"targets": ()}, r"lora\.targets is empty: use layers, or some of q, .*, or set lora\.rank=0"),
        (
            {"rank": 7, "targets": ("q", "k")},
            r"lora\.rank=7 is above the rank of projection q, which has 6 inputs and 12 outputs: set "
            r"lora\.rank to at most 6, or leave q out of lora\.targets",
        ),
        (
            {"rank": 7, "targets": ("q", "down", "k"), "sizes": {"K": 1}},
            "projection k, which has 6 inputs and 3 outputs: set lora.rank to at most 3, or leave k out of",
        ),
        ({"rank": 7, "targets": ("head",)}, r"projection head, which has 6 inputs and 7 outputs: set"),
        ({"rank": 7, "targets": ("embed",)}, r"projection embed, which has 7 inputs and 6 outputs: set"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    sizes = options.pop("sizes", {})
    with pytest.raises(SdftError, match=message):
        make_lora(LoraConfig(**{"rank": 2, **options}), SIZES | sizes)
