"""The table of TPU estimates is the plan's, and tells what got worse."""

import dataclasses
import json
from pathlib import Path

import pytest

from sdft_jax import cli
from sdft_jax.config import load_config
from sdft_jax.studies.bench import tpu
from sdft_jax.studies.bench.models import write_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    write_model("0.2M", path / "model")
    return path


def record(peak, seconds, compiler="a"):
    return {"peak_bytes": peak * 2.0**30, "seconds": seconds, "compiler": compiler}


@pytest.mark.parametrize(
    ("now", "worse", "peak", "estimated"),
    [
        (record(10.4, 2.08), False, "10.00 GiB -> 10.40 GiB (+4.0%)", "2.00 s -> 2.08 s (+4.0%)"),
        (record(10.6, 1.00), True, "10.00 GiB -> 10.60 GiB (+6.0%)", "2.00 s -> 1.00 s (-50.0%)"),
        (record(5.0, 2.12), True, "10.00 GiB -> 5.00 GiB (-50.0%)", "2.00 s -> 2.12 s (+6.0%)"),
        (record(10.0, None), True, "10.00 GiB -> 10.00 GiB (+0.0%)", "2.00 s -> refused (+inf%)"),
    ],
)
def test_what_got_worse_by_more_than_a_twentieth_is_found(now, worse, peak, estimated):
    before = {"other": record(1.0, 1.0), "row": record(10.0, 2.0)}
    lines, found = tpu.compare(before, {"row": now})
    assert lines == [{"row": "row", "peak": peak, "estimated": estimated}]
    assert found == (["row"] if worse else [])


def test_new_rows_other_compilers_and_what_was_refused_before_are_no_worse():
    before = {"refused": record(10.0, None), "row": record(10.0, 2.0)}
    now = {name: record(10.0, 2.0, "b") for name in ("new", "refused", "row")}
    lines, worse = tpu.compare(before, now)
    assert worse == []
    assert lines[0] == {"row": "new", "peak": "not there before"}
    assert lines[1]["estimated"] == "refused -> 2.00 s (+0.0%)"
    assert lines[2]["then compiled by"] == "a"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read (No such file or directory): give an earlier tpu.json."),
        ("[1]", "cannot be read (it is something else): give an earlier tpu.json."),
        ('{"details": {"runs": [1]}}', "has no row 0.5b-v5e-1: give an earlier tpu.json that has."),
    ],
)
def test_what_is_no_earlier_result_is_refused_before_anything_is_compiled(text, sentence, tmp_path, capsys):
    file = tmp_path / "tpu.json"
    if text:
        file.write_text(text)
    assert cli.main(["bench", "tpu", "--rows", "0.5b-v5e-1", "--against", str(file)]) == 2
    assert capsys.readouterr().err == f"sdft: --against {file} {sentence}\n"


@pytest.mark.parametrize(
    ("name", "file"),
    [("7b-long-v5e-16", "qwen2.5-7b-tooluse.yaml"), ("0.5b-v5e-1", "qwen2.5-0.5b.yaml")],
)
def test_rows_are_the_configurations_that_people_train_with(name, file):
    ours = tpu.ROWS[name].config
    theirs = load_config(Path(__file__).parents[3] / "configs" / file)
    for section in ("preset", "sampling", "teacher", "divergence", "sharding"):
        assert getattr(ours, section) == getattr(theirs, section), section
    for section, names in {
        "model": ("param_dtype", "compute_dtype", "remat", "attention"),
        "data": ("max_prompt", "max_teacher_prompt", "prompt_buckets", "teacher_buckets"),
        "train": ("method", "batch_size", "micro_batch"),
    }.items():
        for key in names:
            one, other = (getattr(getattr(config, section), key) for config in (ours, theirs))
            assert one == other, key
    changed = {"learning_rate": theirs.optimizer.learning_rate}
    assert dataclasses.replace(ours.optimizer, **changed) == theirs.optimizer


def test_a_row_has_the_numbers_of_the_plan_and_a_change_that_costs_fails(
    directory, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("libtpu")
    row = tpu.Row(str(directory / "model"), 32, 64, 16, 4, "v5e-1", "fsdp=1", ("divergence.chunk=64",))
    monkeypatch.setattr(tpu, "ROWS", {"tiny": row})
    assert cli.main(["bench", "tpu", "--output", str(tmp_path)]) == 0
    file = tmp_path / "tpu.json"
    report = json.loads(file.read_text())
    found = report["details"]["tiny"]
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model": {"path": row.model}, "mesh": {"fsdp": 1}}))
    words = [
        "data.max_prompt=32",
        "data.max_teacher_prompt=64",
        "sampling.max_new_tokens=16",
        "train.batch_size=4",
        "divergence.chunk=64",
        "--fast",
        "--output",
        str(tmp_path),
    ]
    assert cli.main(["plan", str(config), "--topology", "v5e-1", *words]) == 0
    (one,) = json.loads((tmp_path / "plan.json").read_text())["estimates"]
    assert (found["peak_bytes"], found["seconds"]) == (one["peak"], one["total_seconds"])
    assert found["limit_seconds"] == sum(one["roofline"].values())
    found["seconds"] /= 1.1
    file.write_text(json.dumps(report))
    capsys.readouterr()
    assert cli.main(["bench", "tpu", "--against", str(file)]) == 1
    assert "more than 5% worse: tiny" in capsys.readouterr().out
