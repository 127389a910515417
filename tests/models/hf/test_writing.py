"""Exported directories equal their source, load in transformers, and exist only when they are complete."""

import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from make_fixtures import CASES, DIRECTORY, auto_class
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, architecture_from_dict, load_model, save_pretrained
from sdft_jax.models.hf import writing
from sdft_jax.sharding import Rules, Sharding, make_mesh


def tensors_of(directory):
    return {name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()}


def assert_same_files(a, b):
    source, copy = tensors_of(a), tensors_of(b)
    assert source.keys() == copy.keys()
    for name, tensor in source.items():
        assert (tensor.dtype, tensor.shape) == (copy[name].dtype, copy[name].shape)
        np.testing.assert_array_equal(tensor, copy[name])
    for name in ("config.json", "generation_config.json"):
        assert json.loads((a / name).read_text()) == json.loads((b / name).read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_changes_nothing(case, tmp_path):
    save_pretrained(*load_model(DIRECTORY / case), None, tmp_path / "out")
    assert_same_files(DIRECTORY / case, tmp_path / "out")


def test_rounding_error_is_that_of_numpy():
    model, params = load_model(DIRECTORY / "qwen3")
    params = jax.tree.map(lambda leaf: leaf + 1e-4, params)
    squared = 0.0
    for leaf in map(np.asarray, jax.tree.leaves(params)):
        squared += np.sum(np.square(leaf.astype(np.float64) - leaf.astype(jnp.bfloat16).astype(np.float64)))
    assert writing.rounding_error(model, params, "bfloat16") == pytest.approx(np.sqrt(squared), rel=1e-5)
    assert writing.rounding_error(model, params, "float32") == 0.0


@pytest.mark.parametrize(("change", "reported"), [(1e-5, True), (1e-1, False)])
def test_training_that_rounding_undoes_is_reported(change, reported, half_directory):
    model, params = load_model(half_directory)
    params = jax.tree.map(lambda leaf: leaf + change * np.sign(leaf), params)
    note = writing.rounding_note(model, params)
    assert writing.rounding_note(model, params, "float32") == []
    assert len(note) == reported
    for text in note:
        assert "bfloat16" in text
        assert "--dtype float32" in text
        assert 50 < int(text.split(" %")[0].rpartition(" ")[2]) <= 100


def test_a_round_trip_on_a_mesh_changes_nothing(tmp_path):
    sharding = Sharding(make_mesh(2, 2, 2), Rules(vocab=None))
    model, params = load_model(DIRECTORY / "qwen3", sharding=sharding)
    save_pretrained(model, params, None, tmp_path / "out", max_shard_size=30_000)
    assert_same_files(DIRECTORY / "qwen3", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    source = tensors_of(DIRECTORY / "qwen3")
    assert index["weight_map"].keys() == source.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in source.values())


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("gemma3", "float32"),
        ("gemma3", "bfloat16"),
        ("gemma3_vision", "bfloat16"),
        ("mistral3_vision", "bfloat16"),
        ("ministral3_vision", "bfloat16"),
        ("gemma4_vision", "bfloat16"),
        ("gemma4_unified_vision", "bfloat16"),
        ("qwen35_vision", "bfloat16"),
        ("qwen35_moe_vision", "bfloat16"),
        ("gemma4_moe", "bfloat16"),
        ("gemma4_e", "bfloat16"),
        ("gpt_oss", "bfloat16"),
    ],
)
def test_transformers_loads_an_exported_model_with_the_same_weights(case, dtype, tmp_path):
    """Of multimodal models, with the names that transformers has itself, which differ from published ones."""
    import torch
    from transformers import AutoConfig

    config, loader = AutoConfig.from_pretrained(DIRECTORY / case), auto_class(DIRECTORY / case)
    theirs = loader.from_config(config).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs", save_original_format=False)
    save_pretrained(*load_model(tmp_path / "theirs"), None, tmp_path / "ours", max_shard_size=40_000)
    assert_same_files(tmp_path / "theirs", tmp_path / "ours")
    back, report = loader.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back) is type(theirs)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, tensor in theirs.state_dict().items():
        assert tensor.dtype == back.state_dict()[name].dtype
        assert torch.equal(tensor, back.state_dict()[name]), name


def test_the_config_has_the_dtype_of_the_export(tmp_path):
    for case, key in (("qwen2", "torch_dtype"), ("qwen3_tied", "dtype")):
        save_pretrained(*load_model(DIRECTORY / case), None, tmp_path / case, dtype="float32")
        assert {str(t.dtype) for t in tensors_of(tmp_path / case).values()} == {"float32"}
        assert json.loads((tmp_path / case / "config.json").read_text()) == {**CASES[case], key: "float32"}


def test_export_of_a_model_without_a_source(tmp_path):
    raw = {key: value for key, value in CASES["qwen3"].items() if key != "architectures"}
    model = Model(architecture_from_dict(raw))
    params = jax.jit(model.init)(jax.random.key(0))
    save_pretrained(model, params, None, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == CASES["qwen3"]
    reloaded, loaded = load_model(tmp_path / "out")
    assert reloaded.architecture.kinds == model.architecture.kinds
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


class FakeTokenizer:
    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("given")


def test_the_tokenizer_is_the_given_one_or_copied_from_the_source(tmp_path):
    source = shutil.copytree(DIRECTORY / "qwen3", tmp_path / "source")
    (source / "tokenizer.json").write_text("own")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("not part of a model")
    loaded = load_model(source)
    save_pretrained(*loaded, None, tmp_path / "copied")
    assert (tmp_path / "copied" / "tokenizer.json").read_text() == "own"
    assert (tmp_path / "copied" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert "not part of a model" not in (tmp_path / "copied" / "README.md").read_text()
    save_pretrained(*loaded, FakeTokenizer(), tmp_path / "given")
    assert (tmp_path / "given" / "tokenizer.json").read_text() == "given"
    assert not (tmp_path / "given" / "chat_template.jinja").exists()


def test_an_older_export_is_replaced_and_other_files_are_not(tmp_path):
    model, params = load_model(DIRECTORY / "qwen3")
    save_pretrained(model, params, None, tmp_path / "out", max_shard_size=30_000)
    save_pretrained(model, params, None, tmp_path / "out")
    assert_same_files(DIRECTORY / "qwen3", tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(SdftError, match=r"contains notes\.txt"):
        save_pretrained(model, params, None, tmp_path / "out")
    with pytest.raises(SdftError, match="is not a directory: remove it, or write to another"):
        save_pretrained(model, params, None, tmp_path / "out" / "notes.txt")
    with pytest.raises(SdftError, match="is the checkpoint that the model was read from"):
        save_pretrained(model, params, None, DIRECTORY / "qwen3")


def test_a_failed_export_leaves_the_older_export_and_no_other_files(tmp_path, monkeypatch):
    model, params = load_model(DIRECTORY / "qwen3")
    save_pretrained(model, params, None, tmp_path / "out")

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(writing, "write_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(model, params, None, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert_same_files(DIRECTORY / "qwen3", tmp_path / "out")


def test_the_error_of_a_missing_source(tmp_path):
    source = shutil.copytree(DIRECTORY / "qwen3", tmp_path / "source")
    loaded = load_model(source)
    shutil.rmtree(source)
    with pytest.raises(SdftError, match=r"source has neither model\.safetensors"):
        save_pretrained(*loaded, None, tmp_path / "out")
