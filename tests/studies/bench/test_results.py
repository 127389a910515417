"""The output of a benchmark."""

import argparse
import json

import pytest
from jax.errors import JaxRuntimeError

from sdft_jax import cli
from sdft_jax.errors import SdftError
from sdft_jax.reporting.charts import Bar
from sdft_jax.studies.bench import decode
from sdft_jax.studies.bench.results import Measured, natural, positive, publish, shape


def test_results_are_published_as_table_json_plot_and_page(tmp_path, capsys):
    ratios = [Bar("a", "seconds", 2.0)]
    rows = [{"case": "a", "ours": "1 s"}]
    publish(Measured("divergence", rows, ratios, {"every": 1}, "a machine", "idle"), str(tmp_path))
    assert "1 s" in capsys.readouterr().out
    report = json.loads((tmp_path / "divergence.json").read_text())
    assert report["measured on"] == "a machine; idle"
    assert report["details"] == {"every": 1}
    assert (tmp_path / "divergence.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "| a | 1 s |" in (tmp_path / "README.md").read_text()


NUMBERS = {
    "divergence": ("--tokens", "--vocabulary", "--width", "--chunk", "--whole-up-to", "--rounds"),
    "train": ("--shapes", "--rounds"),
    "sft": ("--shapes", "--rounds"),
    "trl": ("--shapes", "--steps", "--rounds"),
    "loop": ("--shapes", "--steps"),
    "decode": ("--batches", "--prompt", "--new", "--rounds"),
    "gpu": ("--batches", "--prompt", "--new"),
    "decode_tpu": ("--batch", "--prompts", "--new"),
    "startup": ("--rounds", "--depths", "--compilations"),
}
"""The numeric options of each benchmark."""


@pytest.mark.parametrize("value", ["-1", "1048577", "1" * 5000, "1e3", "1.5", "nan", "x", "", "١"])
@pytest.mark.parametrize(("name", "option"), [(name, one) for name in NUMBERS for one in NUMBERS[name]])
def test_wrong_number_is_refused_before_anything_runs(name, option, value, capsys):
    text = "x".join([value] * (4 if name in ("train", "sft") else 3)) if option == "--shapes" else value
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", name, f"{option}={text}"])
    assert ended.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: " in message
    assert len(message) < 200


def test_numbers_and_shapes():
    assert [natural("0"), positive("1"), positive("1048576")] == [0, 1, 1 << 20]
    assert shape("8x64x1", 3) == (8, 64, 1)
    with pytest.raises(argparse.ArgumentTypeError, match="'8x64' is not 3 integers, such as 8x8x8"):
        shape("8x64", 3)


@pytest.mark.parametrize("content", ["", "[1]", '{"rows": [1], "measured on": "x"}', '{"rows": []}'])
def test_damaged_earlier_result_is_named(content, tmp_path):
    (tmp_path / "sft.json").write_text(content)
    with pytest.raises(SdftError, match=r"sft\.json .*: remove it, or measure again\.$"):
        publish(
            Measured("divergence", [{"a": 1}], [Bar("a", "s", 2.0)], {}, "a machine", "idle"), str(tmp_path)
        )


@pytest.mark.parametrize(
    "error", [MemoryError(), JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")]
)
def test_benchmark_that_does_not_fit_ends_in_a_sentence(error, monkeypatch, capsys):
    def main(argv):
        raise error

    monkeypatch.setattr(decode, "main", main)
    assert cli.main(["bench", "decode"]) == 2
    assert capsys.readouterr().err.startswith("sdft: sdft bench decode: out of memory (")
