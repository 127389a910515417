"""Text models within multimodal checkpoints: both layouts of names, tied heads, and all other tensors."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from make_fixtures import CASES, DIRECTORY
from sdft_jax.config.settings import LoraConfig
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, architecture_from_dict, load_model, read_architecture, save_pretrained
from sdft_jax.models.hf.reading import distance
from sdft_jax.models.hf.wrapped import module_name, plain_name, wrapped_name
from tiny import adapted
from wrapped import NEW, OLD, OTHERS, wrap

OUTER = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}


@pytest.fixture
def wrapped(tmp_path):
    """A function (names, outer keys, inner keys) -> directory of a wrapper around the fixture `gemma3`."""

    def make(names, outer=None, inner=None):
        directory = shutil.copytree(DIRECTORY / "gemma3", tmp_path / "source")
        wrap(directory, names, {**OUTER, **(outer or {})}, inner)
        return directory

    return make


def tensors_of(directory):
    return {name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert (tensor.dtype, tensor.shape) == (b[name].dtype, b[name].shape)
        assert tensor.tobytes() == b[name].tobytes()


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("language_model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.norm.weight", None),
        ("model.vision_tower.language_model.norm.weight", None),
        ("mtp.norm.weight", None),
    ],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


def test_names_in_the_layout_of_the_source():
    for norm, head in (
        ("language_model.model.norm.weight", "language_model.lm_head.weight"),
        ("model.language_model.norm.weight", "lm_head.weight"),
    ):
        assert wrapped_name("model.norm.weight", norm) == norm
        assert wrapped_name("lm_head.weight", norm) == head
    assert module_name("model.layers.0.x") == "model.language_model.layers.0.x"
    assert module_name("lm_head.x") == "lm_head.x"


@pytest.mark.parametrize("names", [OLD, NEW], ids=["old", "new"])
def test_a_wrapper_has_the_parameters_of_its_text_model_and_keeps_all_others(names, wrapped, tmp_path):
    source = wrapped(names)
    (source / "preprocessor_config.json").write_text("{}")
    model, params = load_model(source)
    jax.tree.map(np.testing.assert_array_equal, params, load_model(DIRECTORY / "gemma3")[1])
    save_pretrained(model, params, None, tmp_path / "out", max_shard_size=20_000)
    assert_equal(tensors_of(source), tensors_of(tmp_path / "out"))
    assert json.loads((source / "config.json").read_text()) == json.loads(
        (tmp_path / "out" / "config.json").read_text()
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert OTHERS.keys() < index.keys() == tensors_of(source).keys()
    assert all(name in load_file(tmp_path / "out" / file) for name, file in index.items())
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    assert (
        "model = AutoModelForImageTextToText.from_pretrained" in (tmp_path / "out" / "README.md").read_text()
    )
    assert distance(model, params, DIRECTORY / "gemma3") == distance(model, params, source) == 0


@pytest.mark.parametrize("case", ["qwen35_vision", "qwen35"])
def test_prediction_layers_of_qwen35_are_kept(case, tmp_path):
    """Published checkpoints predict several tokens with `mtp.*`, which transformers does not read either."""
    source = shutil.copytree(DIRECTORY / case, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    own = {"mtp.norm.weight": np.ones(24, np.float32), "mtp.layers.0.mlp.up_proj.weight": np.eye(4)}
    tensors |= own
    prefix = "model.language_model." if case == "qwen35_vision" else "model."
    tensors[f"{prefix}layers.0.linear_attn.A_log"] = np.array([2.7, 1, 0, -1], np.float32)
    save_file(tensors, source / "model.safetensors")
    save_pretrained(*load_model(source), None, tmp_path / "out")
    assert_equal(tensors_of(tmp_path / "out"), tensors)


@pytest.mark.parametrize("names", [None, OLD, NEW], ids=["alone", "old", "new"])
def test_keys_and_values_that_layers_do_not_use_are_kept(names, tmp_path):
    """Published files of Gemma 4 E2B have them for the layers that share those of another one."""
    source = shutil.copytree(DIRECTORY / "gemma4_e", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    unused = {
        f"model.layers.{layer}.self_attn.{name}.weight": np.full((2, 3), layer, np.float32)
        for layer in (4, 7)
        for name in ("k_proj", "v_proj", "k_norm")
    }
    save_file({**tensors, **unused}, source / "model.safetensors")
    if names:
        outer = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4"}
        wrap(source, names, outer)
    save_pretrained(*load_model(source), None, tmp_path / "out")
    assert_equal(tensors_of(tmp_path / "out"), tensors_of(source))


@pytest.mark.parametrize("names", [OLD, NEW], ids=["old", "new"])
def test_adapters_untie_the_head_and_other_tensors_keep_their_dtypes(names, wrapped, tmp_path):
    model, params = adapted(*load_model(wrapped(names)), LoraConfig(rank=2, targets=("head",)))
    save_pretrained(model, params, None, tmp_path / "out", dtype="float32")
    tensors = tensors_of(tmp_path / "out")
    assert_equal({name: tensors[name] for name in OTHERS}, OTHERS)
    assert names["lm_head."] + "weight" in tensors
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]) == (False, False)
    assert config["dtype"] == "float32"
    assert not load_model(tmp_path / "out")[0].architecture.tie_word_embeddings


@pytest.mark.parametrize(
    ("outer", "inner", "tied"),
    [(None, None, True), (True, False, True), (False, None, None), (None, False, None)],
)
def test_a_head_is_tied_as_the_configurations_agree_or_without_a_tensor(outer, inner, tied, wrapped):
    """None: the configuration requires a head, which is missing."""
    directory = wrapped(OLD, {"tie_word_embeddings": outer}, {"tie_word_embeddings": inner})
    if tied is None:
        with pytest.raises(SdftError, match=r"1 of \d+ tensors are missing, the first is lm_head"):
            load_model(directory)
    else:
        assert load_model(directory)[0].architecture.tie_word_embeddings == tied


def test_a_stored_head_is_read_if_the_configurations_differ(wrapped, tmp_path):
    model, params = adapted(*load_model(wrapped(OLD)), LoraConfig(rank=2, targets=("head",)))
    save_pretrained(model, params, None, tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": True}))
    assert not read_architecture(tmp_path / "out").tie_word_embeddings
    assert "head" in load_model(tmp_path / "out")[1]


def test_errors_of_wrappers(wrapped, tmp_path):
    model, params = load_model(wrapped(NEW))
    with pytest.raises(SdftError, match="a gemma3 model needs a source"):
        save_pretrained(Model(model.architecture), params, None, tmp_path / "out")
    shutil.rmtree(model.source)
    with pytest.raises(SdftError, match=r"source has neither model\.safetensors"):
        save_pretrained(model, params, None, tmp_path / "out")
    for change, message in (
        ({"text_config": None}, "text_config is None"),
        ({"text_config": {"model_type": "llama"}}, "'llama' of text_config .* supported: gemma3_text"),
        ({"architectures": ["Gemma3Model"]}, "Gemma3Model is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is not supported"),
    ):
        with pytest.raises(SdftError, match=message):
            architecture_from_dict({**CASES["gemma3_vision"], **change})
