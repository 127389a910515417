"""A model is a directory, the embedded one, or a name on the Hub; all else is refused by name."""

import huggingface_hub
import pytest

from sdft_jax import mini
from sdft_jax.errors import SdftError
from sdft_jax.models.hf.hub import model_directory


def test_directories_and_the_embedded_model(tmp_path):
    assert model_directory(str(tmp_path)) == str(tmp_path)
    assert model_directory("mini").endswith("mini/base")


@pytest.mark.parametrize("path", ["nowhere", "./a", "/a/b/c", "~/model", "a/b/c"])
def test_what_is_neither_a_directory_nor_a_name(path):
    with pytest.raises(SdftError, match=f"model.path={path}: no such directory; give a Hugging Face"):
        model_directory(path)


def test_the_key_that_names_it_is_the_culprit():
    for path in ("./nowhere", "mini:nowhere"):
        with pytest.raises(SdftError, match=f"^eval.base={path}: "):
            model_directory(path, "eval.base")


def test_only_safetensors_and_text_are_downloaded(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **kw: asked.update(kw, name=name) or "/cache"
    )
    assert model_directory("owner/name") == "/cache"
    assert asked["name"] == "owner/name"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(name.endswith(("bin", "pt", "py", "*")) for name in asked["allow_patterns"])


def test_what_the_hub_does_not_give(monkeypatch):
    def refuse(*_, **__):
        raise OSError("404 not found\nlong traceback")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(SdftError, match=r"owner/name: .* \(404 not found\): check the name, or download"):
        model_directory("owner/name")


def test_further_embedded_models_have_names(tmp_path, monkeypatch):
    directories = {None: tmp_path, "chains": tmp_path / "chains", "lists": tmp_path / "lists"}
    monkeypatch.setattr(mini, "model_directories", lambda: directories)
    assert model_directory("mini:chains") == str(tmp_path / "chains")
    for name in ("zzz", "", "README.md", "../base"):
        with pytest.raises(SdftError) as caught:
            model_directory(f"mini:{name}")
        assert str(caught.value) == (
            f"model.path=mini:{name}: there is no such embedded model; use mini or one of mini:chains, "
            "mini:lists."
        )


def test_every_embedded_model_is_a_checkpoint():
    for directory in mini.model_directories().values():
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            path.name for path in directory.iterdir()
        }
