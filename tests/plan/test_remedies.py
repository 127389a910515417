"""The savings of changed settings, compared with counting the arrays of the changed configuration."""

import pytest

from plans import describe_model, setting
from sdft_jax.algorithm.learner import make_model
from sdft_jax.config import load_config
from sdft_jax.plan.footprint import GIB, Widths, answer_arrays, peak_phase, state_arrays, update_arrays
from sdft_jax.plan.program import model_shape
from sdft_jax.plan.remedies import combined, remedies
from sdft_jax.sharding import Sharding, make_mesh, single_device


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return describe_model(tmp_path_factory)


def test_saving_of_a_setting_is_the_difference_of_two_counts(directory):
    config, model = setting(directory, "model.remat=none")
    by_text = {remedy.text.partition(" (")[0]: remedy for remedy in remedies(config, model, update_arrays)}
    assert list(by_text.values()) == sorted(by_text.values(), key=lambda remedy: -remedy.saves)
    _, before = peak_phase(update_arrays(config, model))
    for text in (
        "model.remat=full",
        "train.micro_batch=8",
        "teacher.dtype=bfloat16",
        "optimizer.name=adafactor",
        "optimizer.moments=bfloat16",
        "optimizer.moments=float8",
        "sharding.sequence=tensor",
    ):
        _, after = peak_phase(update_arrays(*setting(directory, "model.remat=none", text)))
        assert by_text[text].saves == before - after > 0
    moved = by_text["mesh.data=1 mesh.fsdp=4"]
    _, after = peak_phase(update_arrays(*setting(directory, "model.remat=none", mesh=(1, 4, 2))))
    assert moved.saves == before - after
    assert not any("eval." in text for text in by_text)
    # two key-value heads are not divisible by four
    assert not any("mesh.tensor=4" in text for text in by_text)


@pytest.mark.parametrize(("name", "expected"), [("Qwen3-30B-A3B", True), ("Qwen2.5-7B", False)])
def test_a_mesh_that_splits_experts_is_a_remedy_of_models_with_experts(name, expected):
    config = load_config(None, [f"model.path={name}", "model.remat=none"])
    model = make_model(config, model_shape(config), Sharding(make_mesh(2, 4, 1), config.sharding))
    options = {remedy.text: remedy for remedy in remedies(config, model, update_arrays)}
    assert ("mesh.data=1 mesh.expert=2" in options) == expected
    if expected:
        split = options["mesh.data=1 mesh.expert=2"]
        other = make_model(config, model_shape(config), Sharding(make_mesh(**split.mesh), config.sharding))
        sizes = [peak_phase(update_arrays(config, one))[1] for one in (model, other)]
        assert split.saves == sizes[0] - sizes[1]
        assert "mesh.expert=" in combined(config, model, update_arrays, 1000 * GIB).text


def test_drawbacks_are_named(directory):
    texts = [remedy.text for remedy in remedies(*setting(directory, "model.remat=none"), update_arrays)]
    assert "model.remat=full (slower)" in texts
    assert "model.param_dtype=bfloat16 (rounding removes small updates)" in texts
    both = [x.text for x in remedies(*setting(directory, "optimizer.moments=float8"), update_arrays)]
    assert "optimizer.name=adafactor optimizer.moments=null (no momentum)" in both
    assert "train.micro_batch=8" in texts


def test_optimizers_are_remedies_if_they_need_less_memory(directory):
    def offered(*overrides):
        texts = [x.text for x in remedies(*setting(directory, *overrides), update_arrays)]
        return {text.partition(" ")[0] for text in texts if text.startswith("optimizer.")}

    adafactor, bfloat16, float8 = (
        "optimizer.name=adafactor",
        "optimizer.moments=bfloat16",
        "optimizer.moments=float8",
    )
    assert offered() == offered("optimizer.name=lion") == {adafactor, bfloat16, float8}
    assert offered("model.param_dtype=bfloat16") == offered(bfloat16) == {adafactor, float8}
    assert offered("model.param_dtype=bfloat16", float8) == {adafactor}
    assert offered(adafactor) == set()
    assert offered("optimizer.b1=0.8") == {bfloat16, float8}  # Adafactor has no b1


def test_adapters_are_a_remedy_of_training_and_not_of_an_evaluation(directory):
    """The bfloat16 base of adapters would save memory in an evaluation too, which has none to train."""

    def evaluation(config, model):
        return answer_arrays(config, model, Widths(16, 16), training=False)

    config = load_config(None, ["model.path=Qwen2.5-0.5B"])
    model = make_model(config, model_shape(config), single_device())
    dtype, *others = [remedy.text for remedy in remedies(config, model, evaluation)]
    assert dtype.startswith("model.param_dtype=bfloat16 ")
    assert not any("lora" in text for text in others)
    full, small = (
        [remedy.text for remedy in remedies(*setting(directory, rank), state_arrays)]
        for rank in ("lora.rank=0", "lora.rank=8")
    )
    assert "lora.rank=32 (trains only adapters of this rank)" in full
    assert "lora.rank=4 (trains only adapters of this rank)" in small


def test_setting_that_contradicts_another_is_not_a_remedy(directory):
    """Half of max_new_tokens, 4, would not be above the bucket of 6 tokens."""
    config, model = setting(directory, "train.completion_buckets=[6]")
    texts = [remedy.text for remedy in remedies(config, model, update_arrays)]
    assert texts
    assert not any("max_new_tokens" in text for text in texts)


def test_combined_settings_save_the_target_or_as_much_as_possible(directory):
    config, model = setting(directory)
    best = remedies(config, model, update_arrays)[0]
    assert combined(config, model, update_arrays, best.saves / 2) is None
    several = combined(config, model, update_arrays, best.saves * 1.01)
    assert several.saves > best.saves
    assert several.text.startswith(f"{best.text} with ")
    most = combined(config, model, update_arrays, 1000 * GIB)
    keys = [text.partition("=")[0] for text in most.text.split(" with ")]
    assert len(set(keys)) == len(keys) > 2  # each setting is named once, with its final value
    _, before = peak_phase(update_arrays(config, model))
    sharding = Sharding(make_mesh(**most.mesh), most.config.sharding)
    other = make_model(most.config, model_shape(most.config), sharding)
    _, after = peak_phase(update_arrays(most.config, other))
    assert most.saves == before - after
