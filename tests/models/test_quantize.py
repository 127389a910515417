"""Quantized weights: hand-worked codes, the arrays of qwix, every family, decoding, gradients and meshes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from make_fixtures import CASES as CONFIGS
from make_fixtures import DIRECTORY, one_of_each_family, tokens_and_mask
from sdft_jax.algorithm import init_state, join, make_update
from sdft_jax.config.settings import LoraConfig
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, architecture_from_dict, load_model, save_pretrained
from sdft_jax.models.families import PROJECTIONS
from sdft_jax.models.lora import adapter_params
from sdft_jax.models.quantize import (
    NF4,
    SCALE,
    cast,
    dequantize,
    quantize,
    quantize_params,
    quantized,
    quantized_matmul,
)
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.types import Sequences
from tiny import (
    GEMMA4_E,
    QWEN3,
    adapted,
    assert_decoding_equals_full_forward,
    ragged,
    tiny_batch,
    tiny_learner,
    tiny_model,
)

FORMATS = ("int8", "nf4")
CASES = [
    case
    for case in one_of_each_family(mistral="mistral3_vision")
    if architecture_from_dict(CONFIGS[case]).experts is None
]
Q, OUT, DOWN = PROJECTIONS[0], PROJECTIONS[3], PROJECTIONS[6]
logits_of = jax.jit(Model.logits, static_argnums=0)


def weights(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(params):
    """Return a parameter tree with the weights that the codes stand for."""
    layers = dict(params["layers"])
    for name in [name for name in layers if name.endswith(SCALE)]:
        weight = name.removesuffix(SCALE)
        layers[weight] = jax.vmap(dequantize)(layers[weight], layers.pop(name))
    return {**params, "layers": layers}


def test_int8_by_hand():
    """Each output has its own scale, and an output of zeros the scale 1."""
    codes, scale = quantize(DOWN, "int8", jnp.array([[[-2.0, 0.0], [1.0, 0.0], [0.5, 0.0]]]))
    assert scale.dtype == jnp.bfloat16
    np.testing.assert_allclose(scale, [[2 / 127, 1.0]], rtol=2**-8)
    assert codes.dtype == jnp.int8
    assert codes[0, :, 0].tolist() == [-127, 64, 32]
    assert codes[0, :, 1].tolist() == [0, 0, 0]
    np.testing.assert_allclose(dequantize(codes[0], scale[0])[:, 0], [-2, 1, 0.5], atol=0.01)


def test_nf4_by_hand():
    """Each tile of 64 inputs has its own scale; the codes are the nearest of the 16 values."""
    weight = np.zeros((1, 128, 1), np.float32)
    weight[0, :4, 0] = 2.0, -2.0, 2 * 0.24, 2 * 0.30  # between 0.246 and 0.338, the middle is 0.292
    weight[0, 64:66, 0] = 0.5, -0.1
    codes, scale = quantize(DOWN, "nf4", jnp.asarray(weight))
    assert (codes.dtype, scale.dtype) == (jnp.uint4, jnp.bfloat16)
    assert scale.astype(jnp.float32).tolist() == [[[2.0], [0.5]]]
    assert codes[0, :4, 0].astype(int).tolist() == [15, 0, 10, 11]
    assert codes[0, 64:66, 0].astype(int).tolist() == [15, 5]
    assert set(codes[0, 4:64, 0].astype(int).tolist()) == {7}
    values = dequantize(codes[0], scale[0])[:, 0]
    np.testing.assert_array_equal(values[:4], np.float32([2.0, -2.0, 2 * NF4[10], 2 * NF4[11]]))


@pytest.mark.parametrize("tensor", [Q, OUT], ids=["q", "o"])
@pytest.mark.parametrize("format", FORMATS)
def test_each_code_is_the_nearest(format, tensor):
    """In float64, of all values that the scale allows."""
    sizes = {"D": 128, "N": 2, "H": 32}
    weight = weights((3, *tensor.shape(sizes)))
    codes, scale = quantize(tensor, format, weight)
    values = np.arange(-127, 128) if format == "int8" else np.float64(NF4)
    index = np.asarray(codes, np.int32) + (127 if format == "int8" else 0)
    step = np.stack([dequantize(jnp.ones_like(c), s) for c, s in zip(codes, scale, strict=True)])
    step = np.float64(step) / (1 if format == "int8" else NF4[1])
    errors = np.abs(weight[..., None] - step[..., None] * values)
    chosen = np.take_along_axis(errors, index[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, errors.min(-1), atol=1e-6)


@pytest.mark.parametrize("tensor", PROJECTIONS, ids=[tensor.name for tensor in PROJECTIONS])
@pytest.mark.parametrize("format", FORMATS)
def test_the_arrays_are_those_of_qwix(format, tensor):
    """qwix restores the same weights from them, and its own codes differ only where its scale does."""
    qwix = pytest.importorskip("qwix")
    sizes = {"D": 128, "N": 2, "K": 2, "H": 64, "F": 192}
    inputs = len(tensor.dims.partition(">")[0])
    weight = weights((2, *tensor.shape(sizes)))
    codes, scale = quantize(tensor, format, weight)
    ours = np.stack([dequantize(c, s) for c, s in zip(codes, scale, strict=True)])
    if format == "int8":
        scale = jnp.expand_dims(scale, range(1, 1 + inputs))
    array = qwix.QArray(codes, scale.astype(jnp.float32), qtype=jnp.int8 if format == "int8" else "nf4")
    np.testing.assert_array_equal(qwix.dequantize(array), ours)
    channels = [axis for axis in range(weight.ndim) if not 1 <= axis <= inputs]
    tiles = {} if format == "int8" else {inputs: 64}
    if format == "nf4":
        channels += range(1, inputs)
    own = qwix.quantize(weight, array.qtype, channelwise_axes=channels, tiled_axes=tiles)
    assert own.scale.shape == scale.shape
    np.testing.assert_allclose(own.scale, scale.astype(jnp.float32), rtol=2**-7)
    # near the middle between two values, another scale selects the other code
    assert np.mean(np.asarray(own.qvalue, np.int32) == np.asarray(codes, np.int32)) > 0.7


def test_the_parameters_of_a_quantized_projection():
    codes, scale = quantized(OUT, "nf4")
    sizes = {"D": 6, "N": 4, "H": 32, "h": 1}
    assert (codes.shape(sizes), scale.shape(sizes)) == ((4, 32, 6), (4, 1, 6))
    assert (codes.axes, scale.axes) == (("heads", None, "embed"), ("heads", None, "embed"))
    codes, scale = quantized(DOWN, "nf4")
    assert (codes.axes, scale.axes) == (("mlp", "embed"), (None, "embed"))
    assert quantized(Q, "int8")[1].axes == ("heads", None)


@pytest.mark.parametrize(("case", "format"), [*zip(CASES, itertools.cycle(FORMATS), strict=False)])
def test_every_family_equals_its_dequantized_weights(case, format):
    """With adapters, and read from a checkpoint layer by layer; each family has one format of the two."""
    model, base = load_model(DIRECTORY / case)
    read, read_params = load_model(DIRECTORY / case, quantize=format)
    jax.tree.map(np.testing.assert_array_equal, read_params, quantize_params(base, format))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), read.abstract_params()) == jax.tree.map(
        lambda x: (x.shape, x.dtype), read_params
    )
    unquantized, base_and_adapters = adapted(model, base, LoraConfig(rank=3))
    architecture = dataclasses.replace(unquantized.architecture, quantize=format)
    with_adapters = dataclasses.replace(unquantized, architecture=architecture)
    params = join(read_params, adapter_params(base_and_adapters))
    tokens, mask = tokens_and_mask()
    sequences = Sequences(tokens, mask)
    actual = logits_of(with_adapters, params, sequences)[mask]
    expected = logits_of(unquantized, plain(params), sequences)[mask]
    np.testing.assert_allclose(actual, expected, atol=5e-5 * np.abs(expected).max())
    if model.architecture.num_hidden_layers == 4:  # errors of layers add up
        original = logits_of(unquantized, base_and_adapters, sequences)[mask]
        lost = np.std(actual - original) / np.std(original)
        assert 1e-4 < lost < (0.1 if format == "int8" else 0.8)  # weights of these models are random


@pytest.mark.parametrize("format", FORMATS)
def test_a_quantized_model_without_adapters_equals_its_dequantized_weights(format):
    model, params = load_model(DIRECTORY / "qwen3", quantize=format)
    sequences = Sequences(*tokens_and_mask())
    expected = logits_of(load_model(DIRECTORY / "qwen3")[0], plain(params), sequences)[sequences.mask]
    actual = logits_of(model, params, sequences)[sequences.mask]
    np.testing.assert_allclose(actual, expected, atol=5e-5 * np.abs(expected).max())


def test_every_family_is_among_the_cases():
    """Of those that may have no experts."""
    of = {case: architecture_from_dict(config) for case, config in CONFIGS.items()}
    found = {of[case].family.model_type for case in CASES}
    assert found == {model.family.model_type for model in of.values() if model.experts is None}


@pytest.mark.parametrize("format", FORMATS)
def test_decoding_with_a_cache_equals_the_full_forward(format):
    model, params = adapted(*tiny_model(), LoraConfig(rank=4, quantize=format))
    assert_decoding_equals_full_forward(model, params)


@pytest.mark.parametrize(
    ("tensor", "spec"), [(Q, "btd,dnh->btnh"), (OUT, "bthk,hkd->btd"), (DOWN, "btf,fd->btd")], ids="qod"
)
@pytest.mark.parametrize("format", FORMATS)
def test_the_programs_for_a_tpu_compute_the_same(format, tensor, spec):
    """Also for a row of zeros, and for a row with one value a hundred times the others."""
    sizes = {"D": 128, "N": 2, "H": 64, "F": 192}
    (codes,), (scale,) = quantize(tensor, format, weights((1, *tensor.shape(sizes))))
    inputs = codes.shape[: len(tensor.dims.partition(">")[0])]
    x = weights((4, 1, *inputs), seed=1)
    x[1] = 0
    x[2].flat[0] = 100.0
    expected = np.einsum(spec, np.float64(x), np.float64(dequantize(codes, scale)))
    for decoding in (False, True):
        actual = quantized_matmul(spec, jnp.asarray(x), codes, scale, "tpu", decoding)
        size = np.abs(x).max((1, *range(2, x.ndim)), keepdims=True).reshape(4, 1, *(1,) * (expected.ndim - 2))
        assert np.all(np.abs(actual - expected) <= 1e-3 * size)
    other = quantized_matmul(spec, jnp.asarray(x), codes, scale, "cpu", True)
    np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-4)


def test_the_int8_product_on_a_mesh():
    """A row's unit and the integer sums are those of all devices, and no row moves to another device."""
    sharding = Sharding(make_mesh(2, 2, 2))
    (codes,), (scale,) = quantize(DOWN, "int8", weights((1, 64, 32)))
    arrays = jnp.asarray(weights((8, 1, 64), seed=1)), codes, scale
    product = functools.partial(quantized_matmul, "btf,fd->btd", platform="tpu", decoding=True)
    places = sharding.named("batch", None, "mlp"), sharding.named("mlp", None), sharding.replicated
    split = jax.jit(product, in_shardings=places, out_shardings=sharding.named("batch"))
    np.testing.assert_array_equal(split(*map(jax.device_put, arrays, places)), jax.jit(product)(*arrays))
    assert "collective-permute" not in split.lower(*arrays).compile().as_text()


def test_codes_keep_their_dtype():
    _, params = adapted(*tiny_model(), LoraConfig(rank=4, quantize="nf4"))
    dtypes = {x.dtype.name for x in jax.tree.leaves(cast(params, "bfloat16"))}
    assert dtypes == {"uint4", "bfloat16"}


def test_routers_sinks_and_decay_rates_stay_wide():
    """In every family, and in layers that share keys and values and have experts."""
    models = {case: Model(architecture_from_dict(CONFIGS[case])) for case in one_of_each_family()}
    models["sharing"] = Model(architecture_from_dict(QWEN3 | GEMMA4_E))
    router, rates = {"router", "router_norm", "router_factors"}, {"delta_log_rate", "delta_rate_bias"}
    expected = {
        "qwen3_moe": {"router"},
        "gpt_oss": {"router", "router_bias", "sinks"},
        "qwen35": rates,
        "qwen35_moe": {*rates, "router"},
        "gemma4_moe": router,
        "sharing": router | {f"sharing_{name}" for name in router},
    }
    for case, model in models.items():
        params = jax.eval_shape(functools.partial(cast, dtype="bfloat16"), model.abstract_params())
        outer = {name: shape for name, shape in params.items() if name != "layers"}
        dtypes = {name: shape.dtype.name for name, shape in {**outer, **params["layers"]}.items()}
        wide = {name for name, dtype in dtypes.items() if dtype == "float32"}
        assert wide == expected.get(case, set()), case
        assert set(dtypes.values()) <= {"float32", "bfloat16"}


@pytest.mark.parametrize("format", FORMATS)
def test_the_gradient_of_adapters(format):
    """It passes through the quantized weights as through those that they stand for."""
    model, params = adapted(*tiny_model(), LoraConfig(rank=2, quantize=format))
    unquantized = dataclasses.replace(
        model, architecture=dataclasses.replace(model.architecture, quantize=None)
    )
    sequences = ragged(np.random.default_rng(0), 3, 7)

    def loss(model, params, adapters):
        whole = {**params, "layers": {**params["layers"], **adapters["layers"]}}
        return jnp.sum(model.logits(whole, sequences)[sequences.mask] ** 2)

    adapters = adapter_params(params)
    actual = jax.jit(jax.grad(functools.partial(loss, model, params)))(adapters)
    expected = jax.jit(jax.grad(functools.partial(loss, unquantized, plain(params))))(adapters)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), actual, expected)


def test_one_device_and_eight_learn_the_same():
    losses = []
    for mesh in ((1, 1, 1), (2, 2, 2)):
        overrides = ("lora.rank=4", "lora.quantize=nf4", "optimizer.learning_rate=1e-2")
        learner, params = tiny_learner(*overrides, "sampling.max_new_tokens=6", mesh=mesh)
        state, update = init_state(learner, params), make_update(learner)
        for seed in range(3):
            state, metrics = update(state, tiny_batch(seed=seed))
            losses.append(float(metrics.scalars["loss"]))
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-5)
    assert len(set(losses[:3])) == 3


def test_a_weight_that_is_not_finite_is_refused(tmp_path):
    model, params = load_model(DIRECTORY / "qwen3")
    params["layers"]["down"] = params["layers"]["down"].at[1, 2, 3].set(jnp.nan)
    save_pretrained(model, params, None, tmp_path / "model")
    with pytest.raises(SdftError, match=r"NaN or infinite, the first is \['layers'\]\['down_scale'\]"):
        load_model(tmp_path / "model", quantize="int8")


def test_a_model_whose_experts_would_not_be_quantized_is_refused():
    with pytest.raises(SdftError, match=r"quantize=int8 is not supported for qwen3_moe models: the experts"):
        load_model(DIRECTORY / "qwen3_moe", quantize="int8")


def test_quantization_needs_adapters():
    with pytest.raises(SdftError, match=r"lora\.quantize=int8 .* set lora\.rank, or lora\.quantize=null"):
        LoraConfig(quantize="int8")
