"""Decoding with a cache, padding, rematerialization, sharding, and properties of the compiled program."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from make_fixtures import CASES, DIRECTORY, one_of_each_family, tokens_and_mask
from sdft_jax.algorithm import FactoredLogits
from sdft_jax.algorithm.chunked_loss import chunked_loss
from sdft_jax.algorithm.imitation import cross_entropy
from sdft_jax.algorithm.routers import with_routers
from sdft_jax.errors import SdftError
from sdft_jax.models import FAMILIES as SUPPORTED
from sdft_jax.models import REMAT_POLICIES, Model, architecture_from_dict, load_model
from sdft_jax.models.cache import separate_states
from sdft_jax.sharding import Rules, Sharding, make_mesh, single_device, tree_shardings
from sdft_jax.types import Sequences
from tiny import QWEN3, QWEN35, VOCABULARY, ragged

hidden_of = jax.jit(Model.hidden_states, static_argnums=0)
prefill = jax.jit(Model.prefill, static_argnums=(0, 3))
decode = jax.jit(Model.decode, static_argnums=0, donate_argnums=3)


@functools.partial(jax.jit, static_argnums=0)
def initialized(model, seed):
    return model.init(jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def layer_by_layer(model, params, cache):
    """Return copies of both, of which `decode` may be given the cache as a donation."""
    return jax.tree.map(jnp.copy, model.layer_by_layer(params, cache))


GRADIENT_TOLERANCE = 3e-5
"""Rounding is below 7e-6, except in sums of terms that cancel, the gradients of Gemma 4's layer_scalar and of
the rates of delta nets, and in the 5 layers of gemma4, whose attention is sharp: there it is up to 1.1e-5."""


def padded_batch():
    """Return the sequences of the fixtures, with ragged left padding."""
    return Sequences(*tokens_and_mask())


def first(sequences, length):
    """Return the first `length` columns."""
    return jax.tree.map(lambda x: x[:, :length], sequences)


FAMILIES = one_of_each_family(qwen2="qwen2_sliding", llama3="llama31", qwen3_moe="qwen3_moe_mixed")


@pytest.fixture(scope="module")
def qwen():
    return load_model(DIRECTORY / "qwen3_tied")


@pytest.mark.parametrize("case", FAMILIES)
def test_prefill_and_decoding_equal_the_full_forward_pass(case):
    model, params = load_model(DIRECTORY / case)
    batch = padded_batch()
    tokens, mask = batch.tokens, batch.mask
    full = np.asarray(hidden_of(model, params, batch))
    split = 30
    hidden, cache = prefill(model, params, first(batch, split), 44)
    np.testing.assert_allclose(
        np.asarray(hidden)[mask[:, :split]], full[:, :split][mask[:, :split]], atol=1e-4
    )
    for step in range(split, tokens.shape[1]):
        hidden, cache = decode(model, params, tokens[:, step], cache)
        np.testing.assert_allclose(hidden, full[:, step], atol=1e-4)
    assert int(cache.length) == tokens.shape[1]
    np.testing.assert_array_equal(cache.positions, mask.sum(axis=1))
    architecture = model.architecture
    for kind, state in enumerate(cache.states):
        layers, window = len(architecture.layers_of(kind)), architecture.kinds[kind].window
        if architecture.kinds[kind].mixer == "attention":
            if architecture.kinds[kind].shares_keys:
                assert state is None
                continue
            full_heads = {
                "gemma4": (1, 16),
                "gemma4_moe": (1, 16),
                "gemma4_e": (2, 16),
                "gemma4_unified": (4, 12),
            }
            usual = architecture.num_key_value_heads, architecture.head_dim
            heads = usual if window else full_heads.get(case, usual)
            assert state.keys.shape == (layers, 3, *heads, window or 44)
        else:
            assert (state.tail.shape, state.matrix.shape) == ((layers, 3, 3, 128), (layers, 3, 4, 16, 16))


def test_padding_on_either_side_has_no_influence(qwen):
    model, params = qwen
    tokens = np.random.default_rng(0).integers(3, 61, (1, 8))
    padded = np.zeros((2, 14), tokens.dtype)
    mask = np.zeros((2, 14), bool)
    padded[0, 6:], mask[0, 6:] = tokens[0], True
    padded[1, 2:10], mask[1, 2:10] = tokens[0], True
    unpadded = hidden_of(model, params, Sequences(tokens, np.ones((1, 8), bool)))[0]
    hidden = np.asarray(hidden_of(model, params, Sequences(padded, mask)))
    np.testing.assert_allclose(hidden[0, 6:], unpadded, atol=1e-5)
    np.testing.assert_allclose(hidden[1, 2:10], unpadded, atol=1e-5)


def test_a_row_of_padding_is_finite_and_does_not_change_other_rows(qwen):
    model, params = qwen
    tokens, mask = tokens_and_mask()
    first_row_empty = mask.copy()
    first_row_empty[0] = False

    def loss(params, mask):
        hidden = model.hidden_states(params, Sequences(tokens, mask))
        return jnp.sum(hidden[1:] ** 2), hidden

    loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, hidden), gradient = loss_and_gradient(params, first_row_empty)
    assert np.isfinite(hidden).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    full = np.asarray(loss_and_gradient(params, mask)[0][1])
    np.testing.assert_allclose(np.asarray(hidden)[1:][mask[1:]], full[1:][mask[1:]], atol=1e-5)
    hidden, cache = prefill(model, params, Sequences(tokens, first_row_empty), 44)
    hidden, cache = decode(model, params, tokens[:, 0], cache)
    assert np.isfinite(hidden).all()


def test_rematerialization_does_not_change_gradients(qwen):
    model, params = qwen
    batch = padded_batch()

    def gradient(remat):
        other = dataclasses.replace(model, remat=remat)
        loss = jax.grad(lambda p: jnp.sum(other.hidden_states(p, batch) ** 2))
        return jax.device_get(jax.jit(loss)(params))

    plain = gradient("none")
    for remat in REMAT_POLICIES.keys() - {"none"}:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), plain, gradient(remat)
        )


def test_the_error_of_an_unknown_remat_policy():
    with pytest.raises(SdftError, match=r"remat='some' is not a policy: use one of none, full, dots"):
        Model(architecture_from_dict(CASES["qwen3"]), remat="some")


@pytest.mark.parametrize("case", ["qwen3", "gemma3"])
def test_the_program_is_one_scan_for_any_number_of_layers(case):
    def equations(layers):
        raw = {**CASES[case], "num_hidden_layers": layers}
        model = Model(architecture_from_dict(raw), remat="full")
        params = model.abstract_params()
        sequences = Sequences(jax.ShapeDtypeStruct((2, 8), jnp.int32), jax.ShapeDtypeStruct((2, 8), bool))
        jaxpr = jax.make_jaxpr(lambda *args: model.hidden_states(*args))(params, sequences).jaxpr
        return sorted(str(equation.primitive) for equation in jaxpr.eqns)

    assert equations(4).count("scan") == 1
    assert equations(4) == equations(16)


@pytest.mark.parametrize(("layers", "outside"), [(4, 0), (5, 1), (3, 3)])
def test_layers_outside_a_scan_are_kept_from_merging_with_their_rematerialization(layers, outside):
    """With a period of two: two steps, two steps and a remaining layer, and one step, which is no loop."""
    model = Model(architecture_from_dict(QWEN3 | QWEN35 | {"num_hidden_layers": layers}), remat="full")
    sequences = Sequences(jax.ShapeDtypeStruct((2, 8), jnp.int32), jax.ShapeDtypeStruct((2, 8), bool))
    gradient = jax.grad(lambda params, batch: jnp.sum(model.hidden_states(params, batch)))
    lowered = jax.jit(gradient).lower(model.abstract_params(), sequences)
    assert lowered.as_text().count("optimization_barrier") == outside


def test_the_cache_is_updated_in_place(qwen):
    model, params = qwen
    cache = jax.eval_shape(lambda: model.init_cache(8, 4096))
    step = jax.jit(model.decode, donate_argnums=2).lower(params, jnp.zeros(8, jnp.int32), cache).compile()
    memory, size = step.memory_analysis(), cache.states[0].keys.size * 4
    assert memory.alias_size_in_bytes >= 2 * size
    assert memory.temp_size_in_bytes < size


def test_an_empty_cache_can_be_donated(qwen):
    model, params = qwen
    tokens = jnp.array([5, 6])
    hidden, _ = decode(model, params, tokens, model.init_cache(2, 8))
    expected = hidden_of(model, params, Sequences(tokens[:, None], jnp.ones((2, 1), bool)))[:, 0]
    np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_models_are_hashable_and_compared_without_their_source():
    model = Model(architecture_from_dict(CASES["qwen3"]), source="a")
    equal = Model(architecture_from_dict(CASES["qwen3"]), source="b")
    assert model == equal
    assert hash(model) == hash(equal)
    assert hash(dataclasses.replace(model, sharding=Sharding(make_mesh(2, 2, 2)))) != hash(model)


def test_initial_parameters_have_the_abstract_shapes():
    model = Model(architecture_from_dict(CASES["qwen2"]))
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), jnp.bfloat16)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    assert shapes == model.abstract_params(jnp.bfloat16)
    assert float(jnp.std(params["layers"]["gate"].astype(jnp.float32))) == pytest.approx(0.02, rel=0.1)
    np.testing.assert_array_equal(params["norm"], 1)
    np.testing.assert_array_equal(params["layers"]["q_bias"], 0)
    gemma = jax.jit(Model(architecture_from_dict(CASES["gemma3"])).init)(jax.random.key(0))
    np.testing.assert_array_equal(gemma["layers"]["q_norm"], 0)  # Gemma stores the scale minus one
    np.testing.assert_array_equal(gemma["norm"], 0)
    assert "head" not in gemma


def test_bfloat16_is_close_to_float32(qwen):
    model, params = qwen
    batch = padded_batch()
    mask = batch.mask
    low = dataclasses.replace(model, compute_dtype="bfloat16")
    hidden = hidden_of(low, params, batch)
    assert hidden.dtype == jnp.bfloat16
    exact = np.asarray(hidden_of(model, params, batch))[mask]
    assert np.abs(np.asarray(hidden, np.float32)[mask] - exact).mean() < 0.05 * exact.std()
    logits = jax.eval_shape(lambda: low.logits(params, jax.tree.map(jnp.asarray, batch)))
    assert logits.dtype == jnp.float32


def on_one_device_and_on_a_mesh(axes, case="qwen3", **rules):
    """Return (model, parameters) on one device, the same on a mesh, and a batch."""
    raw = {**CASES[case], "vocab_size": 64}
    single = Model(architecture_from_dict(raw))
    params = jax.jit(single.init)(jax.random.key(0))
    sharding = Sharding(make_mesh(*axes), Rules(**rules))
    model = dataclasses.replace(single, sharding=sharding)
    sharded = jax.device_put(params, tree_shardings(sharding, model.logical_axes(), params))
    tokens, mask = np.random.default_rng(0).integers(3, 64, (8, 10)), np.ones((8, 10), bool)
    for row in range(8):  # rows have different padding, so that an exchange of rows is detected
        mask[row, : row % 5] = False
    return (single, params), (model, sharded), Sequences(tokens, mask)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), *jax.device_get((a, b)))


DELTA_NETS = {"num_hidden_layers": 5, "full_attention_interval": 2}
DELTA_NETS["layer_types"] = [*["linear_attention", "full_attention"] * 2, "linear_attention"]
CHANGES = {
    "qwen35": DELTA_NETS,
    "gemma4_moe": {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_e": {"vocab_size_per_layer_input": 64},
}
"""The changes that give a model two periods of layers, and one without experts a remaining layer."""
TRAINED = (*one_of_each_family(qwen2="qwen2_sliding", llama3="llama31"), "phi4_mini")
OTHER_RULES = ({"sequence": "tensor"}, {"activation": "tensor"}, {"sequence": "tensor", "heads": None})


def meshes(case):
    """Return meshes with every axis that the model can be split over."""
    experts = architecture_from_dict(CASES[case]).experts
    return ((8, 1, 1), (1, 2, 2, 2)) if experts else ((8, 1, 1), (2, 2, 2))


@functools.cache
def loss_and_gradients(case, axes=None, **rules):
    """Return the loss of SFT on prompts and completions of different lengths, and all gradients.

    Biases, sinks and the scales of norms are random too.
    """
    raw = {**CASES[case], "vocab_size": 64, **CHANGES.get(case, {})}
    for heads, rule in (("num_key_value_heads", "kv_heads"), ("num_global_key_value_heads", "full_kv_heads")):
        rules |= {rule: None} if raw.get(heads) == 1 else {}
    sharding = Sharding(make_mesh(*axes), Rules(**rules)) if axes else single_device()
    config = architecture_from_dict(raw)
    model = Model(config, sharding=sharding)
    rng = np.random.default_rng(0)
    tensors = itertools.chain(config.outer_tensors, *map(config.tensors_of, config.kinds))
    ones = {tensor.name for tensor in tensors if tensor.init == "ones"}

    def random(path, shape):
        name = path[-1].key
        # a layer whose normalized output is as large as its input amplifies rounding
        mean = (0.3 if "post_" in name else 1) * (name in ones)
        return np.float32(mean + 0.1 * rng.normal(size=shape.shape))

    params = jax.tree_util.tree_map_with_path(random, model.abstract_params())
    rows, columns = np.arange(8)[:, None], np.arange(8)
    masks = columns[:5] >= rows % 5, columns < 8 - rows % 4
    prompt, completion = (Sequences(rng.integers(3, 64, mask.shape), mask) for mask in masks)
    weights = jnp.asarray(completion.mask / completion.mask.sum(), jnp.float32)

    def loss(params):
        tokens, mask = jnp.asarray(completion.tokens), jnp.asarray(completion.mask)
        hidden, routers = model.completion_decisions(params, prompt, completion, mask)
        logits = FactoredLogits(hidden, model.head(params))
        value, _ = chunked_loss(cross_entropy, (logits,), tokens, weights, 16, sharding)
        return with_routers(value, routers, None, weights, mask, 0.1)[0]

    params = jax.device_put(params, tree_shardings(sharding, model.logical_axes(), params))
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


@pytest.mark.parametrize(
    ("case", "axes", "rules"),
    [
        *((case, axes, {}) for case in TRAINED for axes in meshes(case)),
        *(("qwen3", (2, 2, 2), rules) for rules in OTHER_RULES),
    ],
    ids=str,
)
def test_a_mesh_has_the_loss_and_the_gradients_of_one_device(case, axes, rules):
    """To 1e-5 of the loss and of the norm of all gradients, and each parameter's to that of its largest."""
    expected = loss_and_gradients(case)
    actual = loss_and_gradients(case, axes, **rules)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected))
    (loss, vector), (expected_loss, expected_vector) = (
        (value, np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)]))
        for value, gradients in (actual, expected)
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert np.linalg.norm(vector - expected_vector) < 1e-5 * np.linalg.norm(expected_vector)
    jax.tree_util.tree_map_with_path(
        lambda path, x, y: np.testing.assert_allclose(
            x, y, rtol=0, atol=GRADIENT_TOLERANCE * np.abs(y).max(), err_msg=jax.tree_util.keystr(path)
        ),
        actual[1],
        expected[1],
    )


def test_every_family_is_among_the_cases():
    """Gemma 4 with experts and with shared keys included."""

    def kinds(cases):
        architectures = [architecture_from_dict(CASES[case]) for case in cases]
        return {
            (a.family.model_type, a.experts is None, any(kind.shares_keys for kind in a.kinds))
            for a in architectures
        }

    assert kinds(TRAINED) == kinds(FAMILIES) == kinds(CASES)
    assert {family for family, *_ in kinds(TRAINED)} == set(SUPPORTED)


def test_sequence_parallelism_splits_the_residual_stream():
    """data and fsdp split rows, and tensor splits positions: no device normalizes more than [2, 5, 64]."""
    _, (model, params), batch = on_one_device_and_on_a_mesh((2, 2, 2), sequence="tensor")
    lowered = jax.jit(lambda p: model.hidden_states(p, batch)).lower(params)
    text = lowered.compile().as_text()
    norms = re.findall(r"= (f32\[[\d,]+\])[^=]* rsqrt\(", text)
    assert "f32[2,5]" in norms
    assert "f32[2,10]" not in norms  # queries and keys have [2, 10, heads]


def test_a_length_that_the_mesh_does_not_divide_is_padded():
    single, sharded, batch = on_one_device_and_on_a_mesh((1, 2, 2), sequence="tensor")
    outputs = [hidden_of(*model, first(batch, 9)) for model in (single, sharded)]
    assert outputs[1].shape == (8, 9, 24)
    assert_close(*outputs)


def test_kernels_that_do_not_compute_sinks_are_refused():
    model = Model(architecture_from_dict(CASES["gpt_oss"]))
    assert model.kernel == "xla"
    with pytest.raises(
        SdftError, match=r"attention='splash' does not compute the sinks of gpt_oss models: use"
    ):
        dataclasses.replace(model, attention="splash")


@functools.cache
def results_of_a_kernel(attention, case, axes=None):
    """Return gradients, hidden states, those of a prefill, and the keys in its cache."""
    raw = {**CASES[case], "vocab_size": 64}
    params = jax.jit(Model(architecture_from_dict(raw)).init)(jax.random.key(0))
    one_key = raw["num_key_value_heads"] == 1
    rules = Rules(kv_heads=None if one_key else "tensor")
    sharding = Sharding(make_mesh(*axes), rules) if axes else single_device()
    model = Model(architecture_from_dict(raw), attention=attention, remat="full", sharding=sharding)
    batch = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), padded_batch())
    mask = batch.mask
    directions = np.random.default_rng(1).normal(size=(*mask.shape, raw["hidden_size"])).astype(np.float32)

    def total(params):
        hidden = model.hidden_states(params, jax.tree.map(jnp.asarray, batch))
        # not the sum of squares: the final norm makes that almost constant, and its gradient noise
        return jnp.sum(jnp.where(mask[..., None], hidden, 0) * directions), hidden

    gradients, hidden = jax.jit(jax.grad(total, has_aux=True))(params)
    last, cache = prefill(model, params, batch, mask.shape[1] + 2)
    full = cache.states[0].keys  # full attention is the first kind
    keys = np.moveaxis(np.asarray(full)[-1], -1, 1)[:, : mask.shape[1]][mask]
    return jax.device_get((gradients, np.asarray(hidden)[mask], np.asarray(last)[mask], keys))


@pytest.mark.parametrize(
    ("axes", "case"),
    [*itertools.product((None, (2, 2, 2)), ("qwen3", "gemma3", "olmo3")), ((2, 2, 2), "gemma4_unified")],
)
def test_a_kernel_does_not_change_the_model(axes, case):
    """Forward pass, gradient and prefill are the same, for full and sliding layers; splash is interpreted."""
    assert_close(results_of_a_kernel("splash", case, axes), results_of_a_kernel("xla", case))


def test_decoding_on_a_mesh_equals_decoding_on_one_device():
    single, sharded, batch = on_one_device_and_on_a_mesh((1, 4, 2))
    outputs = []
    for model, params in (single, sharded):
        hidden, cache = prefill(model, params, batch, 12)
        outputs.append((hidden, decode(model, params, batch.tokens[:, 0], cache)))
    assert_close(*outputs)
    assert outputs[1][1][1].states[0].keys.addressable_shards[0].data.shape == (4, 2, 1, 16, 12)


@pytest.mark.parametrize(
    "case",
    [
        "qwen3",
        "gemma3",
        "ministral3",
        "qwen35",
        "qwen3_moe",
        "qwen35_moe",
        "gemma4_moe",
        "gemma4_e",
        "gpt_oss",
    ],
)
@pytest.mark.parametrize("mesh", [None, (1, 4, 2)])
def test_decoding_layer_by_layer_equals_the_scan_over_layers(case, mesh):
    rng = np.random.default_rng(0)
    raw = {**CASES[case], "vocab_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    raw |= {"num_global_key_value_heads": 1, "vocab_size_per_layer_input": 64}
    sharding = Sharding(make_mesh(*mesh), Rules(full_kv_heads=None)) if mesh else single_device()
    model = Model(architecture_from_dict(raw), sharding=sharding)
    factor = 2 if case == "gemma4_e" else 5  # eight layers amplify rounding
    initial = initialized(dataclasses.replace(model, sharding=single_device()), rng.integers(999))
    params = jax.tree.map(lambda p: factor * p if np.ptp(p) else p, initial)
    _, scanned = prefill(model, params, ragged(rng, 8, 6), 9)
    separate, unrolled = layer_by_layer(model, params, scanned)
    for column in rng.integers(2, VOCABULARY, (3, 8)):
        expected, scanned = decode(model, params, column, scanned)
        actual, unrolled = decode(model, separate, column, unrolled)
        np.testing.assert_allclose(actual, expected, atol=2e-5)
    expected = separate_states(scanned).states
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), unrolled.states, expected)
    np.testing.assert_array_equal(unrolled.length, scanned.length)
    np.testing.assert_array_equal(unrolled.positions, scanned.positions)


def test_decoding_layer_by_layer_updates_the_cache_in_place_without_a_loop(qwen):
    model, params = qwen
    cache = jax.eval_shape(lambda: model.init_cache(8, 4096))
    params, cache = jax.eval_shape(model.layer_by_layer, params, cache)
    tokens = jax.ShapeDtypeStruct((8,), jnp.int32)
    step = jax.jit(model.decode, donate_argnums=2).lower(params, tokens, cache).compile()
    keys = cache.states[0].keys
    assert step.memory_analysis().alias_size_in_bytes >= 2 * len(keys) * keys[0].size * 4
    assert " while(" not in step.as_text()
    assert not re.findall(rf"= f32\[{','.join(map(str, keys[0].shape))}\][^ ]* copy\(", step.as_text())


def test_the_token_lookup_does_not_replicate_embeddings():
    """Without the constraints of the lookup, XLA gathers [B, T, D] on every device."""
    raw = {**CASES["qwen3_tied"], "vocab_size": 4096, "hidden_size": 256}
    sharding = Sharding(make_mesh(2, 2, 2))
    model = Model(architecture_from_dict(raw), sharding=sharding)
    shapes = model.abstract_params()
    places = tree_shardings(sharding, model.logical_axes(), shapes)
    embed = jax.ShapeDtypeStruct(shapes["embed"].shape, jnp.float32, sharding=places["embed"])
    tokens = jax.ShapeDtypeStruct((16, 64), jnp.int32, sharding=sharding.named("batch", None))
    text = jax.jit(model._embed).lower({"embed": embed}, tokens).compile().as_text()
    assert "f32[16,64,256]" not in text
