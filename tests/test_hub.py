"""A model is a directory, the embedded one, or a name on the Hub; all else is refused by name."""

import huggingface_hub
import pytest

from sdft_jax.errors import SdftError
from sdft_jax.hub import model_directory


def test_directories_and_the_embedded_model(tmp_path):
    assert model_directory(str(tmp_path)) == str(tmp_path)
    assert model_directory("mini").endswith("mini/base")


@pytest.mark.parametrize("path", ["nowhere", "./a", "/a/b/c", "~/model", "a/b/c"])
def test_what_is_neither_a_directory_nor_a_name(path):
    with pytest.raises(SdftError, match=f"model.path={path}: no such directory; give a Hugging Face"):
        model_directory(path)


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
