"""Models from directories, built-in models and the Hub, and errors for other names."""

import huggingface_hub
import pytest

from sdft_jax import mini
from sdft_jax.errors import SdftError
from sdft_jax.models.hf.hub import model_directory


def test_a_directory_and_the_default_embedded_model(tmp_path):
    assert model_directory(str(tmp_path)) == str(tmp_path)
    assert model_directory("mini").endswith("mini/base")


@pytest.mark.parametrize("path", ["nowhere", "./a", "/a/b/c", "~/model", "a/b/c"])
def test_the_error_of_a_missing_directory(path):
    with pytest.raises(SdftError, match=f"model.path={path}: no such directory; give a Hugging Face"):
        model_directory(path)


def test_the_error_begins_with_the_setting():
    for path in ("./nowhere", "mini:nowhere"):
        with pytest.raises(SdftError, match=f"^eval.base={path}: "):
            model_directory(path, "eval.base")


def test_an_adapter_is_no_model(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **kw: str(tmp_path))
    for path in (str(tmp_path), "owner/adapter"):
        with pytest.raises(SdftError) as caught:
            model_directory(path)
        assert str(caught.value) == (
            f"model.path={path} is a PEFT adapter, and not a model: set model.path to its base model, "
            f"lora.adapter={tmp_path}, and lora.rank to r of its adapter_config.json."
        )
    (tmp_path / "config.json").write_text("{}")
    assert model_directory(str(tmp_path)) == str(tmp_path)


def test_a_download_contains_no_pickles_and_no_code(monkeypatch):
    arguments = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **kw: arguments.update(kw, name=name) or "/cache"
    )
    assert model_directory("owner/name") == "/cache"
    assert arguments["name"] == "owner/name"
    assert "*.safetensors" in arguments["allow_patterns"]
    assert not any(name.endswith(("bin", "pt", "py", "*")) for name in arguments["allow_patterns"])


def test_the_error_of_a_failed_download(monkeypatch):
    def fail(*_, **__):
        raise OSError("404 not found\nlong traceback")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        SdftError,
        match=r"owner/name: .*not available from the Hub \(404 not found\): check the name, or download",
    ):
        model_directory("owner/name")


def test_other_embedded_models_are_selected_by_name(tmp_path, monkeypatch):
    directories = {None: tmp_path, "chains": tmp_path / "chains", "lists": tmp_path / "lists"}
    monkeypatch.setattr(mini, "model_directories", lambda: directories)
    assert model_directory("mini:chains") == str(tmp_path / "chains")
    for name in ("zzz", "", "README.md", "../base"):
        with pytest.raises(SdftError) as caught:
            model_directory(f"mini:{name}")
        assert str(caught.value) == (
            f"model.path=mini:{name}: there is no such built-in model; use mini or one of mini:chains, "
            "mini:lists."
        )


def test_every_embedded_model_is_a_checkpoint():
    for directory in mini.model_directories().values():
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            path.name for path in directory.iterdir()
        }
