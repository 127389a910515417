"""`sdft export`: a directory that transformers and this package load."""

import os

import jax
import numpy as np

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
