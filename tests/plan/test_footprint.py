"""What is held, by hand; what would make it less, by counting again."""

import json

import pytest

from sdft_jax.algorithm.state import make_model
from sdft_jax.config import load_config
from sdft_jax.plan.footprint import (
    GIB,
    Widths,
    answer_arrays,
    as_size,
    by_kind,
    combined,
    fullest,
    remedies,
    update_arrays,
)
from sdft_jax.plan.program import model_shape
from sdft_jax.sharding import Sharding, make_mesh
from tiny import QWEN3

SIZES = QWEN3 | {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 32,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(SIZES))
    return path


def setting(directory, *overrides, mesh=(2, 2, 2)):
    config = load_config(
        None,
        [
            f"model.path={directory}",
            "train.batch_size=16",
            "data.max_prompt=24",
            "data.max_teacher_prompt=40",
            "sampling.max_new_tokens=8",
            "divergence.chunk=16",
            *overrides,
        ],
    )
    return config, make_model(config, model_shape(config), Sharding(make_mesh(*mesh), config.sharding))


def sizes(held):
    return {f"{one.kind}: {one.name}": (one.shape, one.bytes) for one in held}


def test_arrays_have_names_shapes_and_a_devices_share_of_bytes(directory):
    found = sizes(update_arrays(*setting(directory, "train.micro_batch=8", "model.remat=hidden")))
    # [layers, width / fsdp, hidden / tensor] of float32; moments lie as their parameters do
    gate = (2, 128, 256), 2 * 64 * 128 * 4
    for name in (
        "parameters: layers/gate",
        "optimizer: mu layers/gate",
        "optimizer: nu layers/gate",
        "teacher: layers/gate",
        "gradients: layers/gate",
    ):
        assert found[name] == gate
    # whole along the width, in bfloat16
    assert found["decoding weights: layers/gate"] == ((2, 128, 256), 2 * 128 * 256 // 4 * 2)
    # 16 rows over data x fsdp, 24 + 8 slots, 2 heads over tensor
    assert found["KV cache: keys"] == ((2, 16, 2, 32, 32), 2 * 4 * 1 * 32 * 32 * 2)
    # a micro-batch of 8 rows, the student's 24 + 8 tokens; the teacher's are 40 + 8
    assert found["activations: inputs of all layers"] == ((2, 8, 32, 128), 2 * 2 * 32 * 128 * 2)
    assert found["activations: feed-forward of all layers"] == ((2, 8, 32, 256), 2 * 2 * 32 * 128 * 2)
    assert found["activations: attention scores of a layer"] == ((8, 4, 32, 48), 2 * 2 * 32 * 48 * 4)
    # of 8 rows x 8 tokens a device has 16; half of the vocabulary
    assert found["logits: of a chunk, student"] == ((16, 512), 16 * 256 * 4)
    assert found["logits: of the head, gradient"] == ((512, 128), 256 * 128 * 4)


def test_an_evaluation_holds_its_own_rows_and_the_base_model(directory):
    config, model = setting(directory, "eval.batch_size=4", "eval.max_new_tokens=16", mesh=(1, 4, 2))
    held = answer_arrays(config, model, Widths(24, 40), training=True, base=True)
    found, kinds = sizes(held), by_kind(held)
    assert found["answers' KV cache: keys"] == ((2, 4, 2, 32, 56), 2 * 1 * 1 * 32 * 56 * 2)
    assert kinds["base model"] == kinds["parameters"] == kinds["teacher"]
    alone = by_kind(answer_arrays(config, model, Widths(24, 40), training=False))
    assert {"optimizer", "teacher", "base model"}.isdisjoint(alone)


def test_phases_do_not_add_up(directory):
    held = update_arrays(*setting(directory))
    phase, size = fullest(held)
    kinds = by_kind(held)
    state = kinds["parameters"] + kinds["optimizer"] + kinds["teacher"]
    learn = kinds["gradients"] + kinds["activations"] + kinds["logits"]
    assert sum(kinds.values()) - state - learn > 0
    assert (phase, size) == ("learn", state + learn)


def test_what_a_setting_saves_is_what_counting_again_gives(directory):
    config, model = setting(directory, "model.remat=none")
    found = {one.text.partition(" (")[0]: one for one in remedies(config, model, update_arrays)}
    assert list(found.values()) == sorted(found.values(), key=lambda one: -one.saves)
    _, now = fullest(update_arrays(config, model))
    for text in (
        "model.remat=full",
        "train.micro_batch=8",
        "teacher.dtype=bfloat16",
        "sharding.sequence=tensor",
    ):
        _, then = fullest(update_arrays(*setting(directory, "model.remat=none", text)))
        assert found[text].saves == now - then > 0
    moved = found["mesh.data=1 mesh.fsdp=4"]
    _, then = fullest(update_arrays(*setting(directory, "model.remat=none", mesh=(1, 4, 2))))
    assert moved.saves == now - then
    assert not any("eval." in text for text in found)
    # Two key-value heads are not divided by four.
    assert not any("mesh.tensor=4" in text for text in found)


def test_several_settings_save_what_is_wanted_or_as_much_as_they_can(directory):
    config, model = setting(directory)
    best = remedies(config, model, update_arrays)[0]
    assert combined(config, model, update_arrays, best.saves / 2) is None
    several = combined(config, model, update_arrays, best.saves * 1.01)
    assert several.saves > best.saves
    assert several.text.startswith(f"{best.text} with ")
    all_of_it = combined(config, model, update_arrays, 1000 * GIB)
    keys = [text.partition("=")[0] for text in all_of_it.text.split(" with ")]
    assert len(set(keys)) == len(keys) > 2  # each is named once, as it ends
    _, now = fullest(update_arrays(config, model))
    sharding = Sharding(make_mesh(**all_of_it.mesh), all_of_it.config.sharding)
    other = make_model(all_of_it.config, model_shape(all_of_it.config), sharding)
    _, then = fullest(update_arrays(all_of_it.config, other))
    assert all_of_it.saves == now - then


def test_sizes_in_words():
    assert [as_size(x) for x in (10.0, 1.5 * 2**20, 9.69 * GIB, 2.0**45)] == [
        "0.0 KiB",
        "1.50 MiB",
        "9.69 GiB",
        "32.00 TiB",
    ]
