"""TPU estimates are the same as those of `sdft plan`, and regressions are reported."""

import dataclasses
import json
from pathlib import Path

import pytest

from benches import run_bench, small_model
from sdft_jax import cli
from sdft_jax.config import load_config
from sdft_jax.studies.bench import tpu


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return small_model(tmp_path_factory)


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
def test_regressions_of_more_than_five_percent_are_reported(now, worse, peak, estimated):
    before = {"other": record(1.0, 1.0), "row": record(10.0, 2.0)}
    lines, regressions = tpu.compare(before, {"row": now})
    assert lines == [{"row": "row", "peak": peak, "estimated": estimated}]
    assert regressions == (["row"] if worse else [])


def test_new_rows_other_compilers_and_formerly_refused_rows_are_not_regressions():
    before = {"refused": record(10.0, None), "row": record(10.0, 2.0)}
    now = {name: record(10.0, 2.0, "b") for name in ("new", "refused", "row")}
    lines, regressions = tpu.compare(before, now)
    assert regressions == []
    assert lines[0] == {"row": "new", "peak": "not in the earlier result"}
    assert lines[1]["estimated"] == "refused -> 2.00 s (+0.0%)"
    assert lines[2]["earlier compiler"] == "a"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "FILE does not exist: pass the tpu.json of an earlier run as --against."),
        (
            "[1]",
            "FILE holds a JSON list instead of a dict: pass the tpu.json of an earlier run as --against.",
        ),
        (
            '{"details": [1]}',
            "--against FILE is not a result of sdft bench tpu: pass the tpu.json of an earlier run.",
        ),
        (
            '{"details": {"0.5b-v5e-1": {"peak_bytes": "x", "seconds": null}}}',
            "--against FILE contains none of the rows to compare (0.5b-v5e-1): pass one that does.",
        ),
    ],
)
def test_invalid_earlier_result_is_an_error_before_compilation(text, sentence, tmp_path, capsys):
    file = tmp_path / "tpu.json"
    if text:
        file.write_text(text)
    assert cli.main(["bench", "tpu", "--rows", "0.5b-v5e-1", "--against", str(file)]) == 2
    assert capsys.readouterr().err == f"sdft: {sentence.replace('FILE', str(file))}\n"


@pytest.mark.parametrize(
    ("name", "file"),
    [("7b-long-v5e-16", "qwen2.5-7b-tooluse.yaml"), ("0.5b-v5e-1", "qwen2.5-0.5b.yaml")],
)
def test_rows_have_the_settings_of_the_shipped_configurations(name, file):
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
            actual, expected = (getattr(getattr(config, section), key) for config in (ours, theirs))
            assert actual == expected, key
    changed = {"learning_rate": theirs.optimizer.learning_rate}
    assert dataclasses.replace(ours.optimizer, **changed) == theirs.optimizer


def test_row_has_the_numbers_of_the_plan_and_a_regression_exits_with_1(
    directory, tmp_path, monkeypatch, capsys, compiled_once
):
    pytest.importorskip("libtpu")
    row = tpu.Row(str(directory), 32, 64, 16, 4, "v5e-1", "fsdp=1", ("divergence.chunk=64",))
    monkeypatch.setattr(tpu, "ROWS", {"tiny": row})
    report = run_bench("tpu", tmp_path)
    measurements = report["details"]["tiny"]
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model": {"path": row.model}, "mesh": {"fsdp": 1}}))
    arguments = [
        "data.max_prompt=32",
        "data.max_teacher_prompt=64",
        "sampling.max_new_tokens=16",
        "train.batch_size=4",
        "divergence.chunk=64",
        "--fast",
        "--output",
        str(tmp_path),
    ]
    assert cli.main(["plan", str(config), "--topology", "v5e-1", *arguments]) == 0
    (estimate,) = json.loads((tmp_path / "plan.json").read_text())["estimates"]
    assert (measurements["peak_bytes"], measurements["seconds"]) == (
        estimate["peak"],
        estimate["total_seconds"],
    )
    assert measurements["limit_seconds"] == sum(estimate["roofline"].values())
    measurements["seconds"] /= 1.1
    file = tmp_path / "tpu.json"
    file.write_text(json.dumps(report))
    capsys.readouterr()
    assert cli.main(["bench", "tpu", "--against", str(file)]) == 1
    assert "more than 5% worse: tiny" in capsys.readouterr().out
