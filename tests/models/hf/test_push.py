"""Uploads by the Hub's own client to a server of this process."""

import shutil

import pytest

from make_fixtures import DIRECTORY
from sdft_jax.errors import SdftError
from sdft_jax.models import load_model, save_pretrained
from sdft_jax.models.hf.adapter import save_adapter
from sdft_jax.models.hf.push import push_to_hub, require_login
from tiny import adapted, tiny_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The directory of a small model in two files."""
    directory = tmp_path_factory.mktemp("exported") / "model"
    save_pretrained(*load_model(DIRECTORY / "qwen3"), None, directory, max_shard_size=60_000)
    return directory


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_files_of_an_export_arrive(exported, hub):
    assert push_to_hub(exported, "me/mine") == f"{hub.url}/me/mine"
    assert hub.files("me/mine") == content(exported)
    assert not hub.repos["me/mine"]["private"]
    assert len([name for name in content(exported) if name.endswith(".safetensors")]) > 1


def test_a_second_upload_leaves_no_files_of_the_first_that_a_loader_would_read(exported, hub, tmp_path):
    push_to_hub(exported, "mine", private=True)
    assert hub.repos["me/mine"]["private"]
    hub.files("me/mine")["onnx/model.safetensors"] = hub.files("me/mine")["notes.txt"] = b"the user's"
    save_pretrained(*load_model(exported), None, tmp_path / "one")
    push_to_hub(tmp_path / "one", "mine", private=True)
    of_user = {"onnx/model.safetensors": b"the user's", "notes.txt": b"the user's"}
    assert hub.files("me/mine") == content(tmp_path / "one") | of_user


def test_a_card_that_was_edited_on_the_hub_stays(exported, hub, tmp_path):
    push_to_hub(exported, "me/mine")
    hub.files("me/mine")["README.md"] += b"My remarks.\n"
    push_to_hub(exported, "me/mine")
    assert hub.files("me/mine")["README.md"].endswith(b"My remarks.\n")
    shutil.copytree(exported, tmp_path / "copy", ignore=shutil.ignore_patterns("README.md"))
    push_to_hub(tmp_path / "copy", "me/mine")
    assert hub.files("me/mine")["README.md"].endswith(b"My remarks.\n")


def test_files_beside_an_export_are_not_uploaded(exported, hub):
    secret = exported / "secret.txt"
    secret.write_text("secret")
    try:
        push_to_hub(exported, "me/mine")
    finally:
        secret.unlink()
    assert "secret.txt" not in hub.files("me/mine")


@pytest.mark.parametrize(
    ("token", "role", "message"),
    [
        (None, "write", "me/mine cannot be uploaded, since nobody is logged in: run `hf auth login`, or set"),
        ("hf_wrong", "write", r"me/mine cannot be uploaded \(Invalid user token.*\): run `hf auth login`"),
        (
            "hf_valid",
            "read",
            "me/mine cannot be uploaded, since the token may only read: run `hf auth login`",
        ),
    ],
)
def test_a_missing_login(hub, monkeypatch, token, role, message):
    hub.role = role
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SdftError, match=message):
        require_login("me/mine")


@pytest.mark.parametrize("name", ["a/b/c", "", "me/ä", "-x"])
def test_a_name_that_the_hub_refuses(hub, name):
    with pytest.raises(SdftError, match=r"is not a name on the Hub .*: give OWNER/NAME\.$"):
        require_login(name)
    assert not hub.requests


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        SdftError, match=r"since http://127\.0\.0\.1:9 does not answer \(.*\): try again later"
    ):
        require_login("me/mine")


@pytest.mark.parametrize("refused", ["/api/repos/create", "/commit/"])
def test_an_upload_that_fails_keeps_the_export(exported, hub, refused):
    hub.refused = refused
    before = content(exported)
    with pytest.raises(SdftError, match=r"model is complete, but was not uploaded to me/mine \(.*403"):
        push_to_hub(exported, "me/mine")
    hub.refused = ""
    assert content(exported) == before
    push_to_hub(exported, "me/mine")
    assert hub.files("me/mine") == before


def test_a_private_upload_to_a_public_repository(exported, hub):
    hub.repos["me/mine"] = {"files": {}, "private": False}
    with pytest.raises(
        SdftError, match="me/mine is public: make it private in its settings, or give another"
    ):
        push_to_hub(exported, "me/mine", private=True)
    assert hub.files("me/mine") == {}


def test_adapters_need_a_base_that_others_can_load(hub, tmp_path):
    model, params = adapted(*tiny_model())
    save_adapter(model, params, tmp_path / "local", str(tmp_path))
    with pytest.raises(SdftError, match=r"is not on the Hub.*--base OWNER/NAME, or merge them with --merge"):
        push_to_hub(tmp_path / "local", "me/adapter")
    save_adapter(model, params, tmp_path / "named", "owner/base")
    push_to_hub(tmp_path / "named", "me/adapter")
    assert hub.files("me/adapter") == content(tmp_path / "named")


def test_only_an_export_is_uploaded(hub, tmp_path):
    with pytest.raises(SdftError, match="is not an exported model: give a directory that sdft export wrote"):
        push_to_hub(tmp_path, "me/mine")
    assert hub.repos == {}
