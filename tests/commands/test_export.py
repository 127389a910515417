"""`sdft export`: a directory that transformers and this package load."""

import json
import os

import jax
import numpy as np
from huggingface_hub import ModelCard

from sdft_jax import cli
from sdft_jax.models import load_model
from sdft_jax.training.export import load_run
from sdft_jax.training.run_directory import RunDirectory


def test_exported_run_is_a_hugging_face_directory(finished, tmp_path, capsys):
    from transformers import AutoConfig, AutoTokenizer

    target = tmp_path / "exported"
    assert cli.main(["export", str(finished), str(target)]) == 0
    assert capsys.readouterr().out == f"{finished / 'checkpoints' / '6'} -> {target}\n"
    assert AutoConfig.from_pretrained(target).model_type == "qwen3"
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.chat_template
    assert tokenizer.decode(tokenizer("reverse a b")["input_ids"]) == "reverse a b"
    exported, trained = load_model(target)[1], load_run(RunDirectory(str(finished)))[1]
    for one, two in zip(jax.tree.leaves(exported), jax.tree.leaves(trained), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert (target / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()


def test_exported_run_and_its_own_model_have_cards_of_the_run(finished, tiny_directory, tmp_path):
    assert cli.main(["export", str(finished), str(tmp_path / "mine"), "--base", "owner/base"]) == 0
    cards = [ModelCard.load(path / "README.md") for path in (tmp_path / "mine", finished / "model")]
    assert [card.data.base_model for card in cards] == ["owner/base", None]
    assert [card.data.model_name for card in cards] == ["mine", "run"]
    accuracy = json.loads((finished / "evaluations.jsonl").read_text().splitlines()[-1])["accuracy"]
    for card in cards:
        assert "| training | `mini:blax` | 24 | 0 |" in card.text
        assert "| this model (step 6) |" in card.text
        assert card.data.eval_results[0].metric_value == accuracy
        assert str(tiny_directory.parent) not in str(card)
        assert str(finished.parent) not in str(card)
    digest = json.loads((finished / "provenance.json").read_text())["digests"]["the weights of the model"]
    assert f"the weights of the model `{digest}`" in cards[0].text


def test_exported_run_is_uploaded(finished, tmp_path, hub, capsys):
    target = tmp_path / "exported"
    arguments = ["export", str(finished), str(target), "--push", "me/mine", "--private"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"{hub.url}/me/mine"]
    assert hub.files("me/mine") == {path.name: path.read_bytes() for path in target.iterdir()}
    assert ModelCard.load(target / "README.md").data.model_name == "me/mine"
    assert hub.repos["me/mine"]["private"]


def test_missing_login_is_found_before_the_work(finished, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert cli.main(["export", str(finished), str(tmp_path / "exported"), "--push", "me/mine"]) == 2
    assert "me/mine cannot be uploaded, since nobody is logged in" in capsys.readouterr().err
    assert cli.main(["export", str(finished), str(tmp_path / "exported"), "--private"]) == 2
    assert "--private is about an upload: add --push NAME, or remove it." in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_errors(finished, tiny_directory, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    for run, target, message in [
        (tiny_directory, tmp_path / "x", "is not a run directory, since it has no config.yaml: give"),
        (finished, tmp_path, "contains thesis.tex, which is not part of an exported model"),
        (finished, tiny_directory, "is the checkpoint that the model was read from"),
    ]:
        assert cli.main(["export", str(run), str(target)]) == 2
        assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]
