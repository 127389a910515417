"""Cached decoding, padding, rematerialisation, sharding and the shape of the program."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from make_fixtures import CASES, DIRECTORY, tokens_and_mask
from sdft_jax.errors import SdftError
from sdft_jax.models import REMAT_POLICIES, Model, config_from_dict, layer_by_layer, load_model
from sdft_jax.sharding import Rules, Sharding, make_mesh, tree_shardings
from tiny import VOCABULARY, ragged

hidden_of = jax.jit(Model.hidden_states, static_argnums=0)
prefill = jax.jit(Model.prefill, static_argnums=(0, 4))
decode = jax.jit(Model.decode, static_argnums=0, donate_argnums=3)


@pytest.fixture(scope="module")
def qwen():
    return load_model(DIRECTORY / "qwen3_tied")


@pytest.mark.parametrize("case", ["qwen2_sliding", "qwen3", "llama31", "olmo2", "olmo3", "gemma3"])
def test_prefill_and_decode_equal_the_full_forward(case):
    model, params = load_model(DIRECTORY / case)
    tokens, mask = tokens_and_mask()
    full = np.asarray(hidden_of(model, params, tokens, mask))
    split = 30
    hidden, cache = prefill(model, params, tokens[:, :split], mask[:, :split], 44)
    np.testing.assert_allclose(
        np.asarray(hidden)[mask[:, :split]], full[:, :split][mask[:, :split]], atol=1e-4
    )
    for step in range(split, tokens.shape[1]):
        hidden, cache = decode(model, params, tokens[:, step], cache)
        np.testing.assert_allclose(hidden, full[:, step], atol=1e-4)
    assert int(cache.length) == tokens.shape[1]
    np.testing.assert_array_equal(cache.positions, mask.sum(axis=1))
    assert cache.keys.shape == (4, 3, model.config.num_key_value_heads, model.config.head_dim, 44)


def test_padding_on_either_side_is_invisible(qwen):
    model, params = qwen
    tokens = np.random.default_rng(0).integers(3, 61, (1, 8))
    padded = np.zeros((2, 14), tokens.dtype)
    mask = np.zeros((2, 14), bool)
    padded[0, 6:], mask[0, 6:] = tokens[0], True
    padded[1, 2:10], mask[1, 2:10] = tokens[0], True
    alone = hidden_of(model, params, tokens, np.ones((1, 8), bool))[0]
    hidden = np.asarray(hidden_of(model, params, padded, mask))
    np.testing.assert_allclose(hidden[0, 6:], alone, atol=1e-5)
    np.testing.assert_allclose(hidden[1, 2:10], alone, atol=1e-5)


def test_a_row_of_padding_is_finite_and_leaves_the_others_alone(qwen):
    model, params = qwen
    tokens, mask = tokens_and_mask()
    empty = mask.copy()
    empty[0] = False

    def loss(params, mask):
        hidden = model.hidden_states(params, tokens, mask)
        return jnp.sum(hidden[1:] ** 2), hidden

    loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, hidden), gradient = loss_and_gradient(params, empty)
    assert np.isfinite(hidden).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    full = np.asarray(loss_and_gradient(params, mask)[0][1])
    np.testing.assert_allclose(np.asarray(hidden)[1:][mask[1:]], full[1:][mask[1:]], atol=1e-5)
    hidden, cache = prefill(model, params, tokens, empty, 44)
    hidden, cache = decode(model, params, tokens[:, 0], cache)
    assert np.isfinite(hidden).all()


def test_rematerialisation_changes_no_gradient(qwen):
    model, params = qwen
    tokens, mask = tokens_and_mask()

    def gradient(remat):
        other = dataclasses.replace(model, remat=remat)
        loss = jax.grad(lambda p: jnp.sum(other.hidden_states(p, tokens, mask) ** 2))
        return jax.device_get(jax.jit(loss)(params))

    plain = gradient("none")
    for remat in REMAT_POLICIES.keys() - {"none"}:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), plain, gradient(remat)
        )


def test_an_unknown_remat_is_refused():
    with pytest.raises(SdftError, match=r"remat 'some' is not one of none, full, dots"):
        Model(config_from_dict(CASES["qwen3"]), remat="some")


@pytest.mark.parametrize("case", ["qwen3", "gemma3"])
def test_the_program_is_one_scan_whatever_the_depth(case):
    def equations(layers):
        raw = {**CASES[case], "num_hidden_layers": layers}
        model = Model(config_from_dict(raw), remat="full")
        params, tokens = model.abstract_params(), jax.ShapeDtypeStruct((2, 8), jnp.int32)
        mask = jax.ShapeDtypeStruct((2, 8), bool)
        jaxpr = jax.make_jaxpr(lambda *args: model.hidden_states(*args))(params, tokens, mask).jaxpr
        return sorted(str(equation.primitive) for equation in jaxpr.eqns)

    assert equations(4).count("scan") == 1
    assert equations(4) == equations(16)


def test_the_cache_is_updated_in_place(qwen):
    model, params = qwen
    cache = jax.eval_shape(lambda: model.init_cache(8, 4096))
    step = jax.jit(model.decode, donate_argnums=2).lower(params, jnp.zeros(8, jnp.int32), cache).compile()
    memory = step.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * cache.keys.size * 4
    assert memory.temp_size_in_bytes < cache.keys.size * 4


def test_an_empty_cache_can_be_donated(qwen):
    model, params = qwen
    tokens = jnp.array([5, 6])
    hidden, _ = decode(model, params, tokens, model.init_cache(2, 8))
    expected = hidden_of(model, params, tokens[:, None], jnp.ones((2, 1), bool))[:, 0]
    np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_models_are_static_arguments():
    model = Model(config_from_dict(CASES["qwen3"]), source="a")
    again = Model(config_from_dict(CASES["qwen3"]), source="b")
    assert model == again
    assert hash(model) == hash(again)
    assert hash(dataclasses.replace(model, sharding=Sharding(make_mesh(2, 2, 2)))) != hash(model)


def test_init_follows_the_shapes():
    model = Model(config_from_dict(CASES["qwen2"]))
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), jnp.bfloat16)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    assert shapes == model.abstract_params(jnp.bfloat16)
    assert float(jnp.std(params["layers"]["gate"].astype(jnp.float32))) == pytest.approx(0.02, rel=0.1)
    np.testing.assert_array_equal(params["norm"], 1)
    np.testing.assert_array_equal(params["layers"]["q_bias"], 0)
    gemma = jax.jit(Model(config_from_dict(CASES["gemma3"])).init)(jax.random.key(0))
    np.testing.assert_array_equal(gemma["layers"]["q_norm"], 0)  # Gemma stores the scale less one
    np.testing.assert_array_equal(gemma["norm"], 0)
    assert "head" not in gemma


def test_bfloat16_stays_near_float32(qwen):
    model, params = qwen
    tokens, mask = tokens_and_mask()
    low = dataclasses.replace(model, compute_dtype="bfloat16")
    hidden = hidden_of(low, params, tokens, mask)
    assert hidden.dtype == jnp.bfloat16
    exact = np.asarray(hidden_of(model, params, tokens, mask))[mask]
    assert np.abs(np.asarray(hidden, np.float32)[mask] - exact).mean() < 0.05 * exact.std()
    logits = jax.eval_shape(lambda: low.logits(params, jnp.asarray(tokens), jnp.asarray(mask)))
    assert logits.dtype == jnp.float32


def spread_over(axes, **rules):
    """A model and its parameters on one device, and the same on a mesh; a batch."""
    raw = {**CASES["qwen3"], "vocab_size": 64}
    alone = Model(config_from_dict(raw))
    params = jax.jit(alone.init)(jax.random.key(0))
    sharding = Sharding(make_mesh(*axes), Rules(**rules))
    model = dataclasses.replace(alone, sharding=sharding)
    spread = jax.device_put(params, tree_shardings(sharding, model.logical_axes(), params))
    tokens, mask = np.random.default_rng(0).integers(3, 64, (8, 10)), np.ones((8, 10), bool)
    for row in range(8):  # each its own, so that rows that are mixed up are seen
        mask[row, : row % 5] = False
    return (alone, params), (model, spread), (tokens, mask)


def assert_near(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), *jax.device_get((a, b)))


@pytest.mark.parametrize(
    "rules",
    [{}, {"sequence": "tensor"}, {"activation": "tensor"}, {"sequence": "tensor", "heads": None}],
    ids=str,
)
def test_a_mesh_has_the_gradient_of_one_device(rules):
    alone, spread, batch = spread_over((2, 2, 2), **rules)
    gradient = jax.grad(lambda params, model: jnp.sum(model.hidden_states(params, *batch) ** 2))
    gradient = jax.jit(gradient, static_argnums=1)
    assert_near(gradient(alone[1], alone[0]), gradient(spread[1], spread[0]))


def test_sequence_parallelism_holds_the_residual_stream_in_parts():
    """[8, 10, 64] over (data x fsdp) rows and tensor positions: no device norms more than [2, 5, 64]."""
    _, (model, params), batch = spread_over((2, 2, 2), sequence="tensor")
    lowered = jax.jit(lambda p: model.hidden_states(p, *batch)).lower(params)
    text = lowered.compile().as_text()
    norms = re.findall(r"= (f32\[[\d,]+\])[^=]* rsqrt\(", text)
    assert "f32[2,5]" in norms
    assert "f32[2,10]" not in norms  # [2, 10, heads] are those of queries and keys


def test_a_length_that_the_mesh_does_not_divide_is_padded():
    alone, spread, (tokens, mask) = spread_over((1, 2, 2), sequence="tensor")
    outputs = [hidden_of(*model, tokens[:, :9], mask[:, :9]) for model in (alone, spread)]
    assert outputs[1].shape == (8, 9, 24)
    assert_near(*outputs)


@pytest.mark.parametrize("case", ["qwen3", "gemma3", "olmo3"])
@pytest.mark.parametrize("axes", [None, (2, 2, 2)])
def test_a_kernel_changes_no_model(case, axes):
    """Full and sliding layers, in the forward pass, its gradient and the prefill; splash is interpreted."""
    raw = {**CASES[case], "vocab_size": 64}
    plain = Model(config_from_dict(raw), attention="xla", remat="full")
    params = jax.jit(plain.init)(jax.random.key(0))
    tokens, mask = (np.concatenate([x, x[:1]]) for x in tokens_and_mask())
    one_key = raw["num_key_value_heads"] == 1
    sharding = axes and Sharding(make_mesh(*axes), Rules(kv_heads=None if one_key else "tensor"))
    kernel = dataclasses.replace(plain, attention="splash", sharding=sharding)
    results = []
    for model in (plain, kernel):

        def total(params, model=model):
            hidden = model.hidden_states(params, jnp.asarray(tokens), jnp.asarray(mask))
            return jnp.sum(jnp.where(mask[..., None], hidden, 0) ** 2), hidden

        gradients, hidden = jax.jit(jax.grad(total, has_aux=True))(params)
        last, cache = prefill(model, params, tokens, mask, tokens.shape[1] + 2)
        keys = np.moveaxis(np.asarray(cache.keys)[-1], -1, 1)[np.asarray(cache.mask)]
        results.append((gradients, np.asarray(hidden)[mask], np.asarray(last)[mask], keys))
    assert_near(*results)


def test_a_mesh_decodes_as_one_device():
    alone, spread, (tokens, mask) = spread_over((1, 4, 2))
    outputs = []
    for model, params in (alone, spread):
        hidden, cache = prefill(model, params, tokens, mask, 12)
        outputs.append((hidden, decode(model, params, tokens[:, 0], cache)))
    assert_near(*outputs)
    assert outputs[1][1][1].keys.addressable_shards[0].data.shape == (4, 2, 1, 16, 12)


@pytest.mark.parametrize("case", ["qwen3", "gemma3"])
@pytest.mark.parametrize("mesh", [None, (1, 4, 2)])
def test_decoding_layer_by_layer_equals_the_scan_over_layers(case, mesh):
    rng = np.random.default_rng()
    raw = {**CASES[case], "vocab_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Model(config_from_dict(raw), sharding=mesh and Sharding(make_mesh(*mesh)))
    params = jax.tree.map(lambda p: 5 * p if np.ptp(p) else p, model.init(jax.random.key(rng.integers(999))))
    tokens, mask = ragged(rng, 8, 6)
    _, scanned = prefill(model, params, tokens, mask, 9)
    alone, apart = jax.tree.map(jnp.copy, layer_by_layer(params, scanned))
    for column in rng.integers(2, VOCABULARY, (3, 8)):
        expected, scanned = decode(model, params, column, scanned)
        found, apart = decode(model, alone, column, apart)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    for whole, layers in ((scanned.keys, apart.keys), (scanned.values, apart.values)):
        np.testing.assert_allclose(np.stack(layers), whole, atol=2e-5)
    np.testing.assert_array_equal(apart.mask, scanned.mask)
    np.testing.assert_array_equal(apart.positions, scanned.positions)


def test_layer_by_layer_the_cache_is_updated_in_place_and_nothing_loops(qwen):
    model, params = qwen
    params, cache = jax.eval_shape(layer_by_layer, params, jax.eval_shape(lambda: model.init_cache(8, 4096)))
    tokens = jax.ShapeDtypeStruct((8,), jnp.int32)
    step = jax.jit(model.decode, donate_argnums=2).lower(params, tokens, cache).compile()
    layer = cache.keys[0].size * 4
    assert step.memory_analysis().alias_size_in_bytes >= 2 * len(cache.keys) * layer
    assert " while(" not in step.as_text()
    assert not re.findall(rf"= f32\[{','.join(map(str, cache.keys[0].shape))}\][^ ]* copy\(", step.as_text())


def test_token_lookup_replicates_nothing():
    """Without the constraints of the lookup, XLA gathers [B, T, D] on every device."""
    raw = {**CASES["qwen3_tied"], "vocab_size": 4096, "hidden_size": 256}
    sharding = Sharding(make_mesh(2, 2, 2))
    model = Model(config_from_dict(raw), sharding=sharding)
    shapes = model.abstract_params()
    places = tree_shardings(sharding, model.logical_axes(), shapes)
    embed = jax.ShapeDtypeStruct(shapes["embed"].shape, jnp.float32, sharding=places["embed"])
    tokens = jax.ShapeDtypeStruct((16, 64), jnp.int32, sharding=sharding.named("batch", None))
    text = jax.jit(model._embed).lower(embed, tokens).compile().as_text()
    assert "f32[16,64,256]" not in text
