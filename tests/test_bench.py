"""What benchmarks are made of; none of them is timed here."""

import json
import sys

import pytest

from sdft_jax import cli
from sdft_jax.bench.models import SIZES, write_model, write_rows
from sdft_jax.bench.results import Measured, publish
from sdft_jax.bench.trl import Case, compare
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
