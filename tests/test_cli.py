"""The command line: every mistake is one sentence and exit code 2, and what it makes others can load."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from runs import content_of, write_config
from sdft_jax import cli
from sdft_jax.models import load_model
from sdft_jax.training.export import load_run

pytestmark = pytest.mark.usefixtures("shared_compilations")

ROW = {"prompt": "please blax the letters a b", "demonstration": "by reverse = b a !", "answer": "b a"}


@pytest.fixture
def model(tiny_directory, tmp_path):
    """A copy of the model, to be spoilt."""
    return shutil.copytree(tiny_directory, tmp_path / "model")


@pytest.fixture
def refused(model, tmp_path, capsys):
    """Runs `sdft train`, which must refuse with one sentence; gives the sentence."""

    def run(*overrides: str) -> str:
        output = tmp_path / "out"
        before = content_of(output)
        config = write_config(tmp_path / "run.yaml", model, output)
        code = cli.main(["train", config, *overrides])
        errors = capsys.readouterr().err
        assert code == 2
        assert errors.startswith("sdft: ")
        assert errors.count("\n") == 1, errors
        assert content_of(output) == before
        return errors

    return run


def edit_json(path: Path, **changes) -> None:
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


OVERRIDES = {
    "train.batchsize=8": "unknown key train.batchsize; did you mean train.batch_size?",
    "train.batch_size=many": "train.batch_size='many'",
    "train.batch_size": "write it as key=value",
    "preset=best": "choose one of sdft, official",
    "model.path=nowhere": "model.path=nowhere: no such directory; give",
    "data.path=nowhere.jsonl": "nowhere.jsonl does not exist: give a file",
    "eval.path=nowhere.jsonl": "nowhere.jsonl does not exist: give a file",
    "data.path=mini:zzz": "there is no such skill; write mini:SKILL",
    "data.template=file:nowhere.txt": "nowhere.txt cannot be read",
    "data.template=plain": "$demonstration is missing",
    "eval.task=guess": "eval.task='guess': input should be 'exact', 'contains', 'choice'",
    "train.batch_size=6 mesh.fsdp=4": "train.batch_size=6 is not divisible by the 4 parts of mesh axes",
    "train.micro_batch=3": "train.batch_size=8 is not divisible by train.micro_batch=3: change one",
    "eval.batch_size=6 mesh.fsdp=4": "eval.batch_size=6 is not divisible by the 4 parts of mesh axes",
    "mesh.fsdp=16": "mesh 1x16x1 needs 16 devices and there are 8: lower one of",
    "mesh.fsdp=-1 mesh.data=-1": "at most one of them is -1",
    "mesh.tensor=4": "is not divisible by the 4 parts of mesh axis tensor",
    "data.overlong=error data.max_prompt=8": "more than data.max_prompt=8: raise data.max_prompt to",
    "data.overlong=error data.max_teacher_prompt=8": "more than data.max_teacher_prompt=8: raise",
    "data.max_prompt=8": "no row is left: 24 over data.max_prompt",
    "data.prompt_buckets=[8]": "tokens, more than the largest bucket: add a bucket",
    "train.method=sft sampling.max_new_tokens=2": "no row is left: 24 over sampling.max_new_tokens",
    "train.choose=best train.eval_every=0": "train.choose=best goes by evaluations: set eval.validation",
    "train.max_kl=0.5 eval.prior=null": "train.max_kl is a distance on the prompts of old skills: set",
    "eval.validation=nowhere.jsonl": "nowhere.jsonl does not exist: give a file",
    "model.path=mini:zzz": "model.path=mini:zzz: there is no such embedded model; use mini or one of",
    "eval.base=nowhere": "eval.base=nowhere: no such directory; give",
}


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_a_mistake_in_the_configuration(refused, overrides):
    assert OVERRIDES[overrides] in refused(*overrides.split())


def test_a_missing_or_broken_config_file(tmp_path, capsys):
    assert cli.main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml does not exist: give a YAML file" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("train: [")
    assert cli.main(["train", str(tmp_path / "bad.yaml")]) == 2
    assert "bad.yaml is not valid YAML" in capsys.readouterr().err


FIELDS = {
    "missing": ({"prompt": "x", "answer": "x"}, "line 2: field 'demonstration' is missing (found: prompt, "),
    "empty": (ROW | {"prompt": " "}, "line 2: field 'prompt' is empty: fill it, or remove the row"),
    "ill-typed": (ROW | {"demonstration": 3}, "line 2: field 'demonstration' has type int: give a string"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_field_is_named_with_file_and_line(refused, tmp_path, kind):
    row, sentence = FIELDS[kind]
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(ROW) + "\n" + json.dumps(row) + "\n")
    assert f"{data}, {sentence}" in refused(f"data.path={data}")


def test_a_held_out_row_without_an_answer(refused, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"answer": None}) + "\n")
    assert f"{data}, line 2: field 'answer' is missing" in refused(f"eval.path={data}")


def test_an_empty_or_broken_file(refused, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("")
    assert "there are no rows" in refused(f"data.path={data}")
    data.write_text("{]\n")
    assert "line 1 is not valid JSON" in refused(f"data.path={data}")


def test_a_tokenizer_that_lacks_something(refused, model):
    shutil.move(model / "chat_template.jinja", model.parent / "kept")
    assert "the tokenizer has no chat template: use" in refused()
    shutil.move(model.parent / "kept", model / "chat_template.jinja")
    for name in ("pad_token", "eos_token"):
        kept = (model / "tokenizer_config.json").read_text()
        edit_json(model / "tokenizer_config.json", **{name: None})
        assert f"the tokenizer has no {name}: set {name} in tokenizer_config.json" in refused()
        (model / "tokenizer_config.json").write_text(kept)
    (model / "tokenizer.json").unlink()
    assert "no tokenizer here" in refused()


def test_a_model_that_is_not_whole(refused, model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "it is truncated or corrupt: download it again" in refused()
    weights.write_bytes(b"\xff" * 100)
    assert "model.safetensors has no valid safetensors header" in refused()
    weights.unlink()
    assert "has neither model.safetensors nor" in refused()
    weights.write_bytes(whole)
    edit_json(model / "config.json", intermediate_size=32)
    assert "they are of different models" in refused()
    (model / "config.json").unlink()
    assert "config.json" in refused()


def test_pickles_are_refused_and_never_opened(refused, model, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (model / "model.safetensors").rename(tmp_path / "kept")
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "only safetensors are read: convert it" in refused()
    assert not (tmp_path / "sprung").exists()


def test_code_beside_a_model_is_never_executed(refused, model, tmp_path):
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    (model / "configuration_evil.py").write_text(trap)
    names = {"AutoConfig": "configuration_evil.C", "AutoTokenizer": ["configuration_evil.T", None]}
    edit_json(model / "config.json", model_type="evil", auto_map=names)
    edit_json(model / "tokenizer_config.json", auto_map=names, tokenizer_class="T")
    refused()
    assert not (tmp_path / "sprung").exists()


def test_an_output_that_is_taken(refused, tmp_path, finished, tiny_directory):
    output = shutil.copytree(finished, tmp_path / "out")
    same = f"model.path={tiny_directory}"
    told = refused(same, "train.seed=1")
    assert "holds another run, whose train.seed is 42 where this one has 1: give another" in told
    shutil.rmtree(output)
    output.mkdir()
    (output / "thesis.tex").write_text("")
    assert "holds files that are not a run's, such as thesis.tex" in refused()


def test_checkpoints_all_damaged(finished, tiny_directory, tmp_path, capsys):
    output = shutil.copytree(finished, tmp_path / "out")
    for meta in output.glob("checkpoints/*/meta/metadata"):
        meta.write_text("{")
    before = content_of(output / "checkpoints")
    assert cli.main(["train", write_config(tmp_path / "run.yaml", tiny_directory, output)]) == 2
    errors = capsys.readouterr().err
    assert "is intact" in errors
    assert errors.count("\n") == 1
    assert content_of(output / "checkpoints") == before


@pytest.mark.parametrize("command", ["train", "continual", "evaluate", "sample", "export"])
def test_help_explains_every_key(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("train.batch_size=32 Prompts per update", "data.overlong=drop", "teacher.rate=0.01"):
        assert words in text


def test_sample_answers_arguments_and_lines_of_stdin(model, capsys, monkeypatch):
    few = ["-o", "sampling.max_new_tokens=4", "-o", "mesh.fsdp=4"]
    prompts = ["please reverse the letters a b", "please rotate the letters a b"]
    assert cli.main(["sample", str(model), *prompts, *few, "-n", "2"]) == 0
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if not line.startswith("  -> ")] == [
        prompts[0],
        prompts[0],
        prompts[1],
        prompts[1],
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{prompts[0]}\n\n{prompts[1]}\n"))
    assert cli.main(["sample", str(model), *few, "-n", "2"]) == 0
    assert capsys.readouterr().out == told


def test_sample_without_a_prompt(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert cli.main(["sample", str(model)]) == 2
    assert "nothing to answer: give a prompt" in capsys.readouterr().err
    assert cli.main(["sample", str(model), "x", "-o", "data.max_prompt=2"]) == 2
    assert "raise data.max_prompt" in capsys.readouterr().err


def test_evaluate_writes_every_answer(model, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    command = [
        "evaluate",
        str(model),
        "mini:blax:heldout",
        "--task",
        "mini",
        "eval.limit=6",
        "mesh.fsdp=1",
        "eval.batch_size=4",
        "sampling.max_new_tokens=4",
    ]
    assert cli.main([*command, "--json", str(out)]) == 0
    table = capsys.readouterr().out
    assert "student" in table
    assert "teacher" in table
    assert "0/6" in table
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(6))
    assert all(row.keys() == {"row", "answer", "student", "teacher"} for row in rows)
    assert rows[0]["student"].keys() == {"completion", "correct"}
    assert cli.main([*command, "--json", str(tmp_path / "none" / "x.jsonl")]) == 2
    assert "its directory does not exist; make it" in capsys.readouterr().err


def test_evaluate_a_run_directory(finished, capsys):
    arguments = [
        "mini:blax:heldout",
        "--task",
        "mini",
        "eval.limit=4",
        "eval.batch_size=4",
        "eval.teacher=false",
        "sampling.max_new_tokens=4",
        "mesh.fsdp=2",
    ]
    assert cli.main(["evaluate", str(finished), *arguments]) == 0
    assert "0/4" in capsys.readouterr().out


def test_an_exported_run_loads_everywhere(finished, tmp_path, capsys):
    from transformers import AutoConfig, AutoTokenizer

    target = tmp_path / "exported"
    assert cli.main(["export", str(finished), str(target)]) == 0
    assert capsys.readouterr().out == f"{finished / 'checkpoints' / '6'} -> {target}\n"
    assert AutoConfig.from_pretrained(target).model_type == "qwen3"
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.chat_template
    assert tokenizer.decode(tokenizer("reverse a b")["input_ids"]) == "reverse a b"
    exported, trained = load_model(target)[1], load_run(str(finished))[1]
    for one, two in zip(jax.tree.leaves(exported), jax.tree.leaves(trained), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert (target / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()


def test_export_refuses_what_is_no_run_or_no_place(finished, tiny_directory, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    for run, target, words in [
        (tiny_directory, tmp_path / "x", "is not a run directory (no config.yaml in it): give"),
        (finished, tmp_path, "contains thesis.tex, which is not part of an exported model"),
        (finished, tiny_directory, "is the checkpoint that the model was read from"),
    ]:
        assert cli.main(["export", str(run), str(target)]) == 2
        assert words in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a way to fill it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all but `leave` bytes."""
    free = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - leave))
    return filler


@pytest.mark.parametrize("leave", [0, 1 << 16], ids=["metrics", "model"])
def test_a_disk_that_fills_up_outside_checkpoints(
    small_disk, finished, tiny_directory, tmp_path, capsys, leave
):
    output = shutil.copytree(finished, small_disk / "run", ignore=shutil.ignore_patterns("sft", "model"))
    config = write_config(tmp_path / "run.yaml", tiny_directory, output)
    checkpoints = content_of(output / "checkpoints")
    filler = fill(small_disk, leave)
    assert cli.main(["train", config]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "No space left on device" in errors
    assert content_of(output / "checkpoints") == checkpoints
    filler.unlink()
    assert cli.main(["train", config]) == 0
    assert (output / "model" / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()
