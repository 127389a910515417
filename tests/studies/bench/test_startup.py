"""The measurement of startup times, and its verdict on compilation by depth."""

import json
import re
from pathlib import Path

import jax
import pytest

from benches import run_bench
from sdft_jax import cli
from sdft_jax.errors import SdftError
from sdft_jax.studies.bench import BENCHES, depth, startup
from sdft_jax.studies.bench.depth import depths, verdict
from sdft_jax.studies.bench.startup import COMMANDS, first_steps, imported

ROOT = Path(__file__).parents[3]


def test_root_readme_links_to_a_page_that_describes_every_benchmark():
    page = "sdft_jax/studies/bench/README.md"
    assert f"]({page})" in (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", (ROOT / page).read_text(), re.M)) == set(BENCHES)


def test_help_does_not_import_jax():
    assert "jax" in imported(COMMANDS["import jax"])
    modules = imported(COMMANDS["sdft --help"])
    assert "sdft_jax.config" in modules
    assert "jax" not in modules


def test_failed_command_is_an_error(capsys):
    with pytest.raises(SdftError, match="`python -X importtime -c raise KeyError` failed"):
        imported(["-c", "raise KeyError"])
    assert "KeyError" in capsys.readouterr().err


def test_console_commands_are_compared_with_jax_and_an_empty_program(tmp_path):
    report = run_bench("startup", tmp_path, "--parts", "console", "--rounds", "2")
    assert [(row["what"], row["beside"]) for row in report["rows"]] == [
        ("sdft --help (without jax)", "import jax"),
        ("sdft --help (without jax)", "an empty program"),
        ("import sdft_jax (without jax)", "import jax"),
        ("import sdft_jax (without jax)", "an empty program"),
    ]
    assert {len(seconds) for seconds in report["details"]["console"]["seconds"].values()} == {2}


def test_zero_rounds_is_an_error(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "startup", "--rounds", "0"])
    assert "argument --rounds: '0' is not an integer from 1 to 1,048,576" in capsys.readouterr().err


def test_first_steps_have_a_cold_cache_a_warm_cache_and_a_resume(tiny_directory, tmp_path, monkeypatch):
    monkeypatch.setitem(startup.RUN, "model", startup.RUN["model"] | {"path": str(tiny_directory)})
    monkeypatch.setitem(startup.RUN, "data", startup.RUN["data"] | {"limit": 24})
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "unused"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # compilation is fast in tests
    descriptions = []
    part = first_steps(tmp_path, descriptions.append)
    assert descriptions == ["first step, empty cache", "first step, warm cache", "first step, resume"]
    assert [row["beside"] for row in part.rows] == ["first step, empty cache"] * 2
    assert min(part.details.values()) > 0
    assert any((tmp_path / "cache" / "sdft_jax").rglob("*-cache"))
    assert not (tmp_path / "unused").exists()
    assert "resuming from step" in (tmp_path / "run.log").read_text()
    steps = [json.loads(line)["step"] for line in (tmp_path / "second" / "metrics.jsonl").open()]
    assert steps == list(range(1, len(steps) + 1))


def test_compilation_of_the_update_is_measured():
    measured = depth.compilation(2, jax.devices()[:1])
    assert min(measured["tracing"], measured["compiling"]) > 0
    assert measured["operations"] > 1000


def test_compilation_is_measured_at_each_depth(monkeypatch):
    """The first compilation of all is not counted, and of each depth, the fastest is."""
    times = iter([99.0, 2.0, 6.0, 4.0, 3.0])

    def compilation(layers, devices):
        return {"tracing": 0.5, "compiling": next(times), "operations": 1000 * layers}

    monkeypatch.setattr(depth, "compilation", compilation)
    descriptions = []
    part, verdicts = depths({"cpu": ()}, [3, 2], 2, descriptions.append)
    assert descriptions == ["cpu, warming up", *["cpu, 2 layers", "cpu, 3 layers"] * 2]
    assert [row["what"] for row in part.rows] == [f"compiling for cpu, {depth} layers" for depth in (2, 3)]
    assert [row["its / ours"] for row in part.rows] == ["1.00", "0.67"]
    results = part.details["cpu"]
    assert {depth: [run["compiling"] for run in runs] for depth, runs in results.items()} == {
        2: [2.0, 4.0],
        3: [6.0, 3.0],
    }
    assert part.ratios[0].value == 2 / 3
    assert "3 layers take 1.50 times as long as 2 layers, with 1.50 times as many operations" in verdicts[0]


@pytest.mark.parametrize(("seconds", "grows"), [(12.0, "does not grow"), (13.0, "grows")])
def test_verdict_says_if_compilation_time_grows_with_depth(seconds, grows):
    shallow, middle, deep = (
        {"tracing": 1.0, "compiling": x, "operations": y} for x, y in ((10.0, 400), (99.0, 1), (seconds, 600))
    )
    numbers = (
        f"32 layers take {seconds / 10:.2f} times as long as 2 layers, with 1.50 times as many operations"
    )
    results = {2: shallow, 4: middle, 32: deep}
    assert verdict("cpu", results) == f"Compilation time for cpu {grows} with depth: {numbers}."
