"""What benchmarks are made of; none of them is timed here."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import pytest

from sdft_jax import cli
from sdft_jax.bench import BENCHES, tpu
from sdft_jax.bench.depth import depths, verdict
from sdft_jax.bench.models import SIZES, write_model, write_rows
from sdft_jax.bench.results import Measured, publish
from sdft_jax.bench.startup import COMMANDS, first_steps, imported
from sdft_jax.bench.trl import Case, compare
from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.figures import Bar
from sdft_jax.models import load_model
from sdft_jax.prompts import Example, load_tokenizer, render, student_messages, tokenize


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    assert write_model("0.2M", path / "model") == pytest.approx(2e5, rel=0.3)
    return path


def test_a_model_is_a_checkpoint_of_its_size(directory):
    model, _ = load_model(directory / "model")
    assert model.config.hidden_size == SIZES["0.2M"]["hidden_size"]


def test_prompts_have_exactly_the_tokens_that_were_asked_for(directory):
    write_rows(directory / "model", directory / "rows.jsonl", 3, prompt=40, demonstration=7)
    tokenizer = load_tokenizer(str(directory / "model"))
    rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        text = render(tokenizer, student_messages(Example(row["prompt"], "", None, 0, "")), {})
        assert len(tokenize(tokenizer, text)) == 40
        assert len(tokenize(tokenizer, row["demonstration"])) == 7


def run_of(seconds, peak, device=None):
    return {"seconds": [9.0, 8.0, *seconds], "peak": peak, "device_peak": device, "dtype": "float32"}


def test_a_comparison_is_by_medians_of_the_steps_after_the_warm_up():
    ours = [run_of([1.0, 1.0, 5.0], 2**20), run_of([2.0, 2.0, 2.0], 2**21)]
    trl = [run_of([3.0, 3.0, 3.0], 2**22), run_of([8.0, 8.0, 9.0], 2**20)]
    row, bars = compare(Case("1M", 8, 64, 64), {"ours": ours, "trl": trl})
    assert (row["sdft_jax"], row["TRL"]) == ("1.5 s", "5.5 s")
    assert row["times faster"] == "3.5 (3.0-4.0)"
    assert (row["sdft_jax, peak"], row["TRL, peak"]) == ("2 MiB", "4 MiB")
    assert [one.value for one in bars] == [3.5, 2.0]


def test_a_gpu_is_not_compared_with_a_cpu():
    with pytest.raises(SdftError, match="one side ran on a GPU and the other did not"):
        compare(Case("1M", 8, 64, 64), {"ours": [run_of([1.0], 1, 5)], "trl": [run_of([1.0], 1)]})


def test_results_are_a_table_json_a_picture_and_a_page(tmp_path, capsys):
    ratios = [Bar("a", "seconds", 2.0)]
    measured = Measured(
        "divergence", [{"case": "a", "ours": "1 s"}], ratios, {"every": 1}, "a machine", "idle"
    )
    publish(measured, str(tmp_path))
    assert "1 s" in capsys.readouterr().out
    report = json.loads((tmp_path / "divergence.json").read_text())
    assert report["measured on"] == "a machine; idle"
    assert report["details"] == {"every": 1}
    assert (tmp_path / "divergence.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "| a | 1 s |" in (tmp_path / "README.md").read_text()


def test_without_trl_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["bench", "trl"]) == 2
    assert "pip install 'sdft_jax[bench]'" in capsys.readouterr().err


def test_the_divergence_is_measured_beside_whole_logits(capsys):
    words = ["--batch", "1", "--tokens", "8", "--width", "8", "--vocabulary", "32", "--chunk", "4"]
    assert cli.main(["bench", "divergence", *words]) == 0
    assert "whole logits / chunked: memory" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "sdft_jax/bench/README.md"])
def test_every_measurement_is_named_where_people_look(page):
    text = (Path(__file__).parents[1] / page).read_text()
    named = set(re.findall(r"^(?:sdft bench |\| `)(\w+)", text, re.M))
    assert named >= set(BENCHES)


def test_the_help_needs_no_jax():
    assert "jax" in imported(COMMANDS["import jax"])
    modules = imported(COMMANDS["sdft --help"])
    assert "sdft_jax.config" in modules
    assert "jax" not in modules


def test_a_command_that_fails_is_not_measured(capsys):
    with pytest.raises(SdftError, match="`python -X importtime -c raise KeyError` failed"):
        imported(["-c", "raise KeyError"])
    assert "KeyError" in capsys.readouterr().err


def test_console_commands_stand_beside_jax_and_an_empty_program(tmp_path):
    words = ["bench", "startup", "--parts", "console", "--rounds", "2", "--output", str(tmp_path)]
    assert cli.main(words) == 0
    report = json.loads((tmp_path / "startup.json").read_text())
    assert [(row["what"], row["beside"]) for row in report["rows"]] == [
        ("sdft --help (without jax)", "import jax"),
        ("sdft --help (without jax)", "an empty program"),
        ("import sdft_jax (without jax)", "import jax"),
        ("import sdft_jax (without jax)", "an empty program"),
    ]
    assert {len(each) for each in report["details"]["console"]["seconds"].values()} == {2}


def test_less_than_one_process_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "startup", "--rounds", "0"])
    assert "argument --rounds: invalid positive value: '0'" in capsys.readouterr().err


def test_a_run_is_timed_cold_warm_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "not this one"))
    told = []
    part = first_steps(tmp_path, told.append)
    assert told == ["first step, empty cache", "first step, warm cache", "first step, resume"]
    assert [row["beside"] for row in part.rows] == ["first step, empty cache"] * 2
    assert min(part.details.values()) > 0
    assert any((tmp_path / "cache" / "sdft_jax").rglob("*-cache"))
    assert not (tmp_path / "not this one").exists()
    assert "resuming from step" in (tmp_path / "run.log").read_text()
    steps = [json.loads(line)["step"] for line in (tmp_path / "second" / "metrics.jsonl").open()]
    assert steps == list(range(1, len(steps) + 1))


def test_compilation_is_measured_at_each_depth():
    told = []
    part, verdicts = depths({"cpu": jax.devices()[:1]}, [3, 2], 2, told.append)
    assert told == ["cpu, warming up", *["cpu, 2 layers", "cpu, 3 layers"] * 2]
    assert [row["what"] for row in part.rows] == [f"compiling for cpu, {depth} layers" for depth in (2, 3)]
    assert part.rows[0]["its / ours"] == "1.00"
    found = part.details["cpu"]
    assert [len(each) for each in found.values()] == [2, 2]
    seconds = [min(one["compiling"] for one in each) for each in found.values()]
    assert part.ratios[0].value == seconds[0] / seconds[1]
    assert f"3 layers take {seconds[1] / seconds[0]:.2f} times as long as 2, in 1.0" in verdicts[0]
    assert found[2][0]["operations"] == found[2][1]["operations"] > 1000


@pytest.mark.parametrize(("seconds", "grows"), [(12.0, "does not grow"), (13.0, "grows")])
def test_growth_with_depth_is_told(seconds, grows):
    shallow, middle, deep = (
        {"tracing": 1.0, "compiling": x, "operations": y} for x, y in ((10.0, 400), (99.0, 1), (seconds, 600))
    )
    told = f"32 layers take {seconds / 10:.2f} times as long as 2, in 1.50 times as many operations"
    found = {2: shallow, 4: middle, 32: deep}
    assert verdict("cpu", found) == f"Compilation for cpu {grows} with depth: {told}."


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
    theirs = load_config(Path(__file__).parents[1] / "configs" / file)
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
    words = ["data.max_prompt=32", "data.max_teacher_prompt=64", "sampling.max_new_tokens=16",
             "train.batch_size=4", "divergence.chunk=64", "--fast", "--output", str(tmp_path)]  # fmt: skip
    assert cli.main(["plan", str(config), "--topology", "v5e-1", *words]) == 0
    (one,) = json.loads((tmp_path / "plan.json").read_text())["estimates"]
    assert (found["peak_bytes"], found["seconds"]) == (one["peak"], one["total_seconds"])
    assert found["limit_seconds"] == sum(one["roofline"].values())
    found["seconds"] /= 1.1
    file.write_text(json.dumps(report))
    capsys.readouterr()
    assert cli.main(["bench", "tpu", "--against", str(file)]) == 1
    assert "more than 5% worse: tiny" in capsys.readouterr().out
