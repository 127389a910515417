"""Sizes of arrays on a device, compared with counts by hand and with the arrays that JAX saves."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from make_fixtures import CASES, one_of_each_family
from plans import SIZES, describe_model, setting
from sdft_jax.config import load_config
from sdft_jax.models import REMAT_POLICIES, Model, architecture_from_dict
from sdft_jax.models.block import rms_norm
from sdft_jax.plan.footprint import (
    DEPENDS_ON,
    GIB,
    Widths,
    answer_arrays,
    as_size,
    by_kind,
    decoded_bytes,
    peak_phase,
    state_arrays,
    update_arrays,
)
from sdft_jax.types import Sequences
from tiny import QWEN35

ROWS, LENGTH = 7, 100
"""The number of rows and tokens in the comparisons with JAX."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return describe_model(tmp_path_factory)


def sizes(arrays):
    return {f"{array.kind}: {array.name}": (array.shape, array.bytes) for array in arrays}


def test_arrays_have_names_shapes_and_bytes_per_device(directory):
    arrays = sizes(update_arrays(*setting(directory, "train.micro_batch=8", "model.remat=hidden")))
    # [layers, width / fsdp, hidden / tensor] of float32; moments are placed as their parameters
    gate = (2, 128, 256), 2 * 64 * 128 * 4
    for name in (
        "parameters: layers/gate",
        "optimizer: mu layers/gate",
        "optimizer: nu layers/gate",
        "teacher: layers/gate",
        "gradients: layers/gate",
    ):
        assert arrays[name] == gate
    # whole along the width, in bfloat16
    assert arrays["decoding weights: layers/gate"] == ((2, 128, 256), 2 * 128 * 256 // 4 * 2)
    # 16 rows over data x fsdp, 24 + 8 slots, 2 heads over tensor
    assert arrays["KV cache: keys"] == ((2, 16, 2, 32, 32), 2 * 4 * 1 * 32 * 32 * 2)
    # a micro-batch of 8 rows, the student's 24 + 8 tokens; the teacher's are 40 + 8
    assert arrays["activations: inputs of all layers"] == ((2, 8, 32, 128), 2 * 2 * 32 * 128 * 2)
    assert arrays["activations: attended values of all layers"] == (
        (2, 8, 32, 4, 32),
        2 * 2 * 32 * 2 * 32 * 2,
    )
    assert arrays["activations: feed-forward hidden of all layers"] == ((2, 8, 32, 256), 2 * 2 * 32 * 128 * 2)
    assert arrays["activations: attention scores of a layer"] == ((8, 4, 32, 48), 2 * 2 * 32 * 48 * 4)
    assert arrays["activations: feed-forward hidden of a layer"] == ((8, 48, 256), 2 * 48 * 128 * 2)
    # a device has 16 tokens of the 8 rows x 8 tokens, and half of the vocabulary
    assert arrays["logits: of a chunk, student"] == ((16, 512), 16 * 256 * 4)
    assert arrays["logits: of the head, gradient"] == ((512, 128), 256 * 128 * 4)
    # the prefill of 16 rows x 24 tokens
    assert arrays["prefill: logits of a token"] == ((16, 512), 4 * 256 * 4)


def saved_by_jax(model, rows=ROWS, length=LENGTH):
    """Return the arrays that `jax.vjp` saves for the backward pass; a scan stacks those of its layers."""
    tokens, mask = (jax.ShapeDtypeStruct((rows, length), dtype) for dtype in (jnp.int32, jnp.bool_))

    def residuals(params, sequences):
        return jax.vjp(lambda params: model.hidden_states(params, sequences), params)[1]

    saved = jax.eval_shape(residuals, model.abstract_params(), Sequences(tokens, mask))
    return jax.tree.leaves(saved)


def saved_by_plan(model, rows=ROWS, length=LENGTH):
    """Return the same arrays as the plan counts them."""
    config = load_config(None, [f"train.batch_size={rows}", f"sampling.max_new_tokens={length - 16}"])
    arrays = update_arrays(config, model, Widths(16, 16))
    return [x for x in arrays if x.kind == "activations" and x.name.endswith("of all layers")]


def saved_by_last_norm(model, rows=ROWS, length=LENGTH):
    """Return the arrays that `jax.vjp` saves of the norm after the last layer."""
    width = model.architecture.hidden_size
    x, weight = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((rows, length, width), (width,)))

    def residuals(x, weight):
        return jax.vjp(lambda x, weight: rms_norm(x, weight, model.architecture), x, weight)[1]

    return jax.tree.leaves(jax.eval_shape(residuals, x, weight))


def per_layer(arrays, model):
    """Count the activations in bfloat16 and the products of routers in all layers, by their last axes."""
    counts, experts = Counter(), model.architecture.experts
    for x in arrays:
        shape = x.shape
        if experts and shape[-2:] == (ROWS * LENGTH, experts.count):
            shape = (*shape[:-2], ROWS, LENGTH, experts.count)
        elif x.dtype != jnp.bfloat16:
            continue
        if shape[:2] == (ROWS, LENGTH):
            counts[shape[2:]] += 1
        elif shape[1:3] == (ROWS, LENGTH):
            counts[shape[3:]] += shape[0]
    return counts


@pytest.mark.parametrize("remat", REMAT_POLICIES)
@pytest.mark.parametrize("case", one_of_each_family())
def test_saved_activations_are_the_residuals_of_jax(case, remat):
    """Except the input of the norm after the last layer, and the products of the delta rule."""
    model = Model(architecture_from_dict(CASES[case]), "bfloat16", remat)
    arrays, residuals = saved_by_plan(model), saved_by_jax(model)
    if remat == "none":  # also saves the intermediate results of norms, rotations and the softmax
        assert sum(x.bytes for x in arrays) < sum(x.size * x.dtype.itemsize for x in residuals)
        return
    counted = Counter()
    for x in arrays:
        if x.dtype == "bfloat16" or x.name == "router of all layers":
            counted[x.shape[3:]] += x.shape[0]
    assert counted == per_layer(residuals, model) - per_layer(saved_by_last_norm(model), model)


def test_saved_products_of_the_delta_rule_are_residuals_of_jax():
    """Two periods of three delta nets and attention, whose blocks of scores are not counted (7 axes)."""
    raw = SIZES | QWEN35 | {"num_hidden_layers": 8, "full_attention_interval": 4, "linear_key_head_dim": 24}
    model = Model(architecture_from_dict(raw), "bfloat16", "dots")
    saved = [x for x in saved_by_jax(model) if x.shape[:1] == (2,) and ROWS in x.shape and x.ndim < 7]
    arrays = saved_by_plan(model)
    assert any(x.dtype == "float32" for x in arrays)
    assert sum(x.bytes for x in arrays) == sum(x.size * x.dtype.itemsize for x in saved)


def test_what_experts_save_without_rematerialization_is_among_the_residuals_of_jax():
    model = Model(architecture_from_dict(CASES["qwen3_moe"]), "bfloat16", "none")
    rows, length, layers = 7, 20, model.architecture.num_hidden_layers
    shapes = Counter(x.shape for x in saved_by_jax(model, rows, length))
    arrays = [x for x in saved_by_plan(model, rows, length) if x.name.startswith("expert ")]
    assert len(arrays) == 5
    choices = rows * length * model.architecture.experts.per_token
    counted = Counter((layers, choices, x.shape[-1]) for x in arrays)
    assert not counted - shapes, (counted, shapes)


def test_evaluation_has_its_own_rows_and_the_base_model(directory):
    config, model = setting(directory, "eval.batch_size=4", "eval.max_new_tokens=16", mesh=(1, 4, 2))
    arrays = answer_arrays(config, model, Widths(24, 40), training=True, base=True)
    named, kinds = sizes(arrays), by_kind(arrays)
    assert named["evaluation KV cache: keys"] == ((2, 4, 2, 32, 56), 2 * 1 * 1 * 32 * 56 * 2)
    assert kinds["base model"] == kinds["parameters"] == kinds["teacher"]
    alone = by_kind(answer_arrays(config, model, Widths(24, 40), training=False))
    assert {"optimizer", "teacher", "base model"}.isdisjoint(alone)


@pytest.mark.parametrize("method", ["sdft", "sft", "offline_kl", "reinvoke"])
def test_every_kind_has_the_settings_that_it_depends_on(method, directory):
    general = ["data.general=mini:old"] if method == "reinvoke" else []
    config, model = setting(directory, f"train.method={method}", *general, mesh=(1, 4, 2))
    evaluation = answer_arrays(config, model, Widths(24, 40), training=True, base=True)
    kinds = by_kind([*update_arrays(config, model), *evaluation])
    assert kinds.keys() <= DEPENDS_ON.keys()
    assert (method == "sft") == ("KV cache" not in kinds)


def test_adapters_have_a_base_that_is_neither_trained_nor_copied(directory):
    """Of rank 4, for the gate projection [128, 256]; the base is bfloat16, and stays on its devices."""
    config, model = setting(directory, "lora.rank=4", mesh=(8, 1, 1))
    arrays = update_arrays(config, model)
    named = sizes(arrays)
    assert named["frozen parameters: layers/gate"] == ((2, 128, 256), 2 * 128 * 256 * 2)
    for name in ("parameters", "optimizer: mu", "optimizer: nu", "teacher", "gradients"):
        name = f"{name} layers/gate_lora_a" if ":" in name else f"{name}: layers/gate_lora_a"
        assert named[name] == ((2, 128, 4), 2 * 128 * 4 * 4)
    kinds = by_kind(arrays)
    assert kinds["optimizer"] == 2 * kinds["gradients"] + 12  # and three counters of four bytes
    assert named["decoding weights: layers/gate_lora_a"] == ((2, 128, 4), 2 * 128 * 4 * 2)
    assert "decoding weights: layers/gate" not in named
    assert "logits: of the head, gradient" not in named
    split = sizes(update_arrays(*setting(directory, "lora.rank=4", mesh=(1, 8, 1))))
    assert "decoding weights: layers/gate" in split
    # every token reads the base and the adapters, copied or not: both in bfloat16
    base = sum(x.bytes for x in arrays if x.kind == "frozen parameters")
    assert decoded_bytes(model) == base + kinds["decoding weights"]
    widths = Widths(16, 16)
    for rank, copies in ((0, 1), (4, 0)):
        config, model = setting(directory, f"lora.rank={rank}")
        kinds = by_kind(answer_arrays(config, model, widths, training=True, base=True))
        assert ("base model" in kinds) == bool(copies)


@pytest.mark.parametrize(
    ("overrides", "bytes_each"),
    [
        ([], 8),
        (["optimizer.moments=bfloat16"], 4),
        (["optimizer.moments=float8"], 2),
        (["optimizer.name=lion", "optimizer.moments=bfloat16"], 2),
        (["optimizer.name=adafactor"], 0),
    ],
    ids=str,
)
def test_bytes_of_an_optimizer(directory, overrides, bytes_each):
    """Exponents of rows, counters and Adafactor's means add less than 0.15 bytes per weight."""
    kinds = by_kind(update_arrays(*setting(directory, *overrides)))
    assert 0 < kinds["optimizer"] / (kinds["parameters"] / 4) - bytes_each < 0.15


def test_gradients_of_micro_batches_are_added_in_float32(directory):
    settings = ("model.param_dtype=bfloat16", "train.batch_size=16")
    gradients = {
        micro: by_kind(update_arrays(*setting(directory, *settings, f"train.micro_batch={micro}")))[
            "gradients"
        ]
        for micro in ("null", 16, 8)
    }
    assert gradients[8] == 2 * gradients[16] == 2 * gradients["null"]


def test_peak_is_that_of_the_largest_phase_not_of_all_phases(directory):
    arrays = update_arrays(*setting(directory))
    phase, size = peak_phase(arrays)
    kinds = by_kind(arrays)
    state = kinds["parameters"] + kinds["optimizer"] + kinds["teacher"]
    assert sum(array.bytes for array in state_arrays(*setting(directory))) == state
    learn = kinds["gradients"] + kinds["activations"] + kinds["logits"]
    assert sum(kinds.values()) - state - learn > 0
    assert (phase, size) == ("learn", state + learn)


def test_sizes_have_units():
    assert [as_size(x) for x in (10.0, 1.5 * 2**20, 9.69 * GIB, 2.0**45)] == [
        "0.0 KiB",
        "1.50 MiB",
        "9.69 GiB",
        "32.00 TiB",
    ]
