"""The command line: arguments, help, and errors of the user, each as one line with exit code 2."""

import errno
import io
import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from runs import content_of, write_config
from sdft_jax import cli
from sdft_jax.errors import SdftError

pytestmark = pytest.mark.usefixtures("shared_compilations")

ROW = {"prompt": "please blax the letters a b", "demonstration": "by reverse = b a !", "answer": "b a"}


@pytest.fixture
def model(tiny_directory, tmp_path):
    """A copy of the model that a test may damage."""
    return shutil.copytree(tiny_directory, tmp_path / "model")


@pytest.fixture
def error_of(model, tmp_path, capsys):
    """Return a function that runs `sdft train`, which must fail and write nothing, and returns the error."""

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
    "train.batch_size": "override 'train.batch_size' is not key=value: write it like train.batch_size=16",
    "preset=best": "preset='best' does not exist: use one of sdft, official",
    "model.path=nowhere": "model.path=nowhere: no such directory; give",
    "data.path=nowhere.jsonl": "nowhere.jsonl does not exist: give a file",
    "eval.path=nowhere.jsonl": "nowhere.jsonl does not exist: give a file",
    "data.path=mini:zzz": "there is no such skill; set SKILL in mini:SKILL to one of",
    "data.template=file:nowhere.txt": "nowhere.txt does not exist: give a text file",
    "data.template=plain": "$demonstration is missing",
    "eval.task=guess": "eval.task='guess': input should be 'exact', 'contains', 'normalised', 'choice'",
    "train.batch_size=6 mesh.fsdp=4": "train.batch_size=6 is not divisible by the 4 parts of mesh axes",
    "train.micro_batch=3": "train.batch_size=8 is not divisible by train.micro_batch=3: change one",
    "eval.batch_size=6 mesh.fsdp=4": "eval.batch_size=6 is not divisible by the 4 parts of mesh axes",
    "mesh.fsdp=16": "mesh 1x16x1 needs 16 devices, and the number of available devices is 8: lower",
    "mesh.fsdp=-1 mesh.data=-1": "set each axis to a positive number, and at most one of them to -1",
    "mesh.tensor=4": "is not divisible by the 4 parts of mesh axis tensor",
    "data.overlong=error data.max_prompt=8": "more than data.max_prompt=8: raise data.max_prompt to",
    "data.overlong=error data.max_teacher_prompt=8": "more than data.max_teacher_prompt=8: raise",
    "data.max_prompt=8": "no row is left (24 over data.max_prompt",
    "data.prompt_buckets=[8]": "tokens, more than the largest bucket: add a bucket",
    "train.method=sft sampling.max_new_tokens=2": "no row is left (24 over sampling.max_new_tokens",
    "train.choose=best train.eval_every=0": "train.choose=best needs evaluations: set eval.validation",
    "train.max_kl=0.5 eval.prior=null": "train.max_kl is a distance on the prompts of eval.prior, which is",
    "eval.validation=nowhere.jsonl": "nowhere.jsonl does not exist: give a file",
    "model.path=mini:zzz": "model.path=mini:zzz: there is no such built-in model; use mini or one of",
    "eval.base=nowhere": "eval.base=nowhere: no such directory; give",
}


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_error_in_a_setting(error_of, overrides):
    assert OVERRIDES[overrides] in error_of(*overrides.split())


def test_missing_or_invalid_configuration_file(tmp_path, capsys):
    assert cli.main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml does not exist: give a YAML file" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("train: [")
    assert cli.main(["train", str(tmp_path / "bad.yaml")]) == 2
    assert "bad.yaml is not valid YAML" in capsys.readouterr().err


FIELDS = {
    "missing": ({"prompt": "x", "answer": "x"}, "line 2: field 'demonstration' is missing (found: prompt, "),
    "empty": (ROW | {"prompt": " "}, "line 2: field 'prompt' is empty: fill it, or remove the row"),
    "wrong type": (ROW | {"demonstration": 3}, "line 2: field 'demonstration' has type int: give a string"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_error_in_a_row_names_file_line_and_field(error_of, tmp_path, kind):
    row, message = FIELDS[kind]
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(ROW) + "\n" + json.dumps(row) + "\n")
    assert f"{data}, {message}" in error_of(f"data.path={data}")


def test_held_out_row_without_an_answer(error_of, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"answer": None}) + "\n")
    assert f"{data}, line 2: field 'answer' is missing" in error_of(f"eval.path={data}")


def test_empty_or_invalid_data_file(error_of, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("")
    assert "there are no rows" in error_of(f"data.path={data}")
    data.write_text("{]\n")
    assert "line 1 is not valid JSON" in error_of(f"data.path={data}")


def test_incomplete_tokenizer(error_of, model):
    shutil.move(model / "chat_template.jinja", model.parent / "saved")
    assert "the tokenizer has no chat template: use" in error_of()
    shutil.move(model.parent / "saved", model / "chat_template.jinja")
    for name in ("pad_token", "eos_token"):
        saved = (model / "tokenizer_config.json").read_text()
        edit_json(model / "tokenizer_config.json", **{name: None})
        assert f"the tokenizer has no {name}: set {name} in tokenizer_config.json" in error_of()
        (model / "tokenizer_config.json").write_text(saved)
    (model / "tokenizer.json").unlink()
    assert "the directory has no tokenizer" in error_of()


def test_incomplete_model(error_of, model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "it is truncated or corrupt: download it again" in error_of()
    weights.write_bytes(b"\xff" * 100)
    assert "model.safetensors has no valid safetensors header" in error_of()
    weights.unlink()
    assert "has neither model.safetensors nor" in error_of()
    weights.write_bytes(whole)
    edit_json(model / "config.json", intermediate_size=32)
    assert "they are from different models: download both again" in error_of()
    (model / "config.json").unlink()
    assert "config.json" in error_of()


def test_pickled_weights_are_rejected_and_never_opened(error_of, model, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (model / "model.safetensors").rename(tmp_path / "saved")
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "only safetensors are supported: convert pickled weights with" in error_of()
    assert not (tmp_path / "sprung").exists()


def test_code_in_a_model_directory_is_never_executed(error_of, model, tmp_path):
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    (model / "configuration_evil.py").write_text(trap)
    names = {"AutoConfig": "configuration_evil.C", "AutoTokenizer": ["configuration_evil.T", None]}
    edit_json(model / "config.json", model_type="evil", auto_map=names)
    edit_json(model / "tokenizer_config.json", auto_map=names, tokenizer_class="T")
    error_of()
    assert not (tmp_path / "sprung").exists()


def test_output_of_another_run_or_with_other_files(error_of, tmp_path, finished, tiny_directory):
    output = shutil.copytree(finished, tmp_path / "out")
    same = f"model.path={tiny_directory}"
    error = error_of(same, "train.seed=1")
    assert "holds another run: its train.seed is 42, and this one's is 1: give another output=" in error
    shutil.rmtree(output)
    output.mkdir()
    (output / "thesis.tex").write_text("")
    assert "holds files that do not belong to a run, such as thesis.tex" in error_of()


def test_damaged_checkpoints(finished, tiny_directory, tmp_path, capsys):
    output = shutil.copytree(finished, tmp_path / "out")
    for meta in output.glob("checkpoints/*/meta/metadata"):
        meta.write_text("{")
    before = content_of(output / "checkpoints")
    assert cli.main(["train", write_config(tmp_path / "run.yaml", tiny_directory, output)]) == 2
    errors = capsys.readouterr().err
    assert f"every checkpoint in {output / 'checkpoints'} is damaged" in errors
    assert errors.count("\n") == 1
    assert content_of(output / "checkpoints") == before


@pytest.mark.parametrize(
    "words", ["a=1 --config c.yaml b=2", "--config c.yaml a=1 b=2", "a=1 b=2 --config c.yaml"]
)
def test_overrides_may_precede_and_follow_options(words):
    arguments = cli._parse(["evaluate", "model", "rows", *words.split()])
    assert (arguments.config, arguments.overrides) == ("c.yaml", ["a=1", "b=2"])


@pytest.mark.parametrize(
    "words", ["train c.yaml a=1 --unknown", "export run directory a=1", "sample model -x"]
)
def test_unrecognized_arguments_are_an_error(words, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(words.split())
    assert exit.value.code == 2
    assert "unrecognized arguments: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "continual", "plan", "evaluate", "sample"])
def test_help_documents_every_key(command, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([command, "--help"])
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "train.batch_size=32 Number of prompts per update",
        "data.overlong=drop",
        "teacher.rate=0.01",
    ):
        assert part in text


@pytest.mark.parametrize("command", ["compare", "export"])
def test_help_of_a_command_without_settings_has_no_keys(command, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([command, "--help"])
    assert exit.value.code == 0
    assert "key=value" not in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path):
    """The directory of a separate file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Write a file that leaves only `leave` free bytes."""
    free = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - leave))
    return filler


@pytest.mark.parametrize("leave", [0, 1 << 16], ids=["metrics", "model"])
def test_full_disk_is_an_error_and_the_run_resumes(
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


@pytest.mark.parametrize(
    "words",
    [["mini", "a", "b", "-n", "2"], ["-n", "2", "mini", "a", "b"], ["mini", "-n", "2", "a", "b"]],
)
def test_prompts_may_precede_or_follow_options(words):
    arguments = cli._parse(["sample", *words])
    assert (arguments.model, arguments.prompts, arguments.n) == ("mini", ["a", "b"], 2)


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ending:
        cli.main(["--version"])
    assert ending.value.code == 0
    assert re.fullmatch(r"sdft_jax \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_prompts_on_standard_input_are_lines_of_utf8(monkeypatch):
    for text, expected in ((b"\xef\xbb\xbfa\xe2\x80\xa8b\r\nc\n", "a\u2028b\nc\n"), (b"a", "a")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), "latin-1"))
        assert cli._standard_input() == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), "latin-1"))
    with pytest.raises(SdftError, match=r"^standard input: byte 1 is not UTF-8: give prompts in UTF-8\.$"):
        cli._standard_input()


def test_argument_that_is_not_text_is_named(capsys):
    """Python decodes bytes that the locale does not have to lone surrogates."""
    assert cli.main(["sample", "mini", "gr\udcfc"]) == 2
    assert capsys.readouterr().err.startswith("sdft: argument 'gr\\udcfc' has bytes that are not utf-8: give")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ESTALE, "Stale file handle"),
            "the output cannot be read or written (Stale file handle)",
        ),
        (OSError(errno.EMFILE, "", "/a"), "/a cannot be read or written (Too many open files)"),
        (OSError(errno.EISDIR, "", "/a", None, "/b"), "/b cannot be read or written (Is a directory)"),
        (MemoryError(), "this process has no more memory (MemoryError): raise its limit"),
    ],
)
def test_error_of_the_system_is_one_sentence(monkeypatch, capsys, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "load_config", fail)
    assert cli.main(["train", "any.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sdft: {message}")


def test_other_errors_have_a_traceback(monkeypatch):
    def fail(*_):
        raise OSError(errno.EINVAL, "of the library")

    monkeypatch.setattr(cli, "load_config", fail)
    with pytest.raises(OSError, match="of the library"):
        cli.main(["train", "any.yaml"])
