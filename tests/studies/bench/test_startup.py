"""What one waits for before anything happens: what is measured of it, and how it is told."""

import json
import re
from pathlib import Path

import jax
import pytest

from sdft_jax import cli
from sdft_jax.errors import SdftError
from sdft_jax.studies.bench import BENCHES
from sdft_jax.studies.bench.depth import depths, verdict
from sdft_jax.studies.bench.startup import COMMANDS, first_steps, imported


@pytest.mark.parametrize("page", ["README.md", "sdft_jax/studies/bench/README.md"])
def test_every_measurement_is_named_where_people_look(page):
    text = (Path(__file__).parents[3] / page).read_text()
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
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # tests compile fast
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
