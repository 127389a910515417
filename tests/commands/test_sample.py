"""`sdft sample`: prompts from arguments and stdin, and the number of completions."""

import io
import sys

import pytest

from sdft_jax import cli

pytestmark = pytest.mark.usefixtures("shared_compilations")

PROMPTS = ["please reverse the letters a b", "please rotate the letters a b"]
SETTINGS = ("-o", "sampling.max_new_tokens=4", "-o", "mesh.fsdp=4")


def test_prompts_are_arguments_or_lines_of_stdin(tiny_directory, capsys, monkeypatch):
    command = ["sample", str(tiny_directory)]
    assert cli.main([*command, *PROMPTS, *SETTINGS, "-n", "2"]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if not line.startswith("  -> ")] == [
        PROMPTS[0],
        PROMPTS[0],
        PROMPTS[1],
        PROMPTS[1],
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPTS[0]}\n\n{PROMPTS[1]}\n"))
    assert cli.main([*command, *SETTINGS, "-n", "2"]) == 0
    assert capsys.readouterr().out == printed


def test_an_adapter_answers_as_the_model_that_it_is_merged_into(tiny_directory, adapter_directories, capsys):
    adapter, merged = adapter_directories
    printed = []
    for model, settings in (
        (tiny_directory, ["-o", "lora.rank=4", "-o", f"lora.adapter={adapter}"]),
        (merged, []),
        (tiny_directory, []),
    ):
        exact = ("-o", "model.compute_dtype=float32")
        assert cli.main(["sample", str(model), *PROMPTS, *SETTINGS, *exact, *settings, "-n", "2"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_errors(tiny_directory, capsys, monkeypatch):
    command = ["sample", str(tiny_directory)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert cli.main(command) == 2
    assert "there is no prompt: give one as an argument" in capsys.readouterr().err
    assert cli.main([*command, "x", "-n", "0"]) == 2
    assert "-n 0: give a number of completions from 1 to 10000" in capsys.readouterr().err
    assert cli.main([*command, "x", "-o", "data.max_prompt=2"]) == 2
    assert "raise data.max_prompt" in capsys.readouterr().err


@pytest.mark.parametrize("n", ["-1", "10001", "99999999999999999999"])
def test_number_of_completions_is_bounded(n, tiny_directory, capsys):
    assert cli.main(["sample", str(tiny_directory), "x", "-n", n]) == 2
    assert f"sdft: -n {n}: give a number of completions from 1 to 10000.\n" == capsys.readouterr().err


def test_prompt_of_other_bytes_is_refused(tiny_directory, capsys):
    assert cli.main(["sample", str(tiny_directory), "a\udcff"]) == 2
    assert r"sdft: argument 'a\udcff' has bytes that are not utf-8: give it in" in capsys.readouterr().err


def test_setting_among_prompts_is_refused(tiny_directory, capsys):
    for text in ("sampling.temperature=0", "sampling.temprature=0", "train.seed=1"):
        assert cli.main(["sample", str(tiny_directory), "x", text]) == 2
        assert f"sdft: the prompt '{text}' is a setting: give it as -o {text}, or" in capsys.readouterr().err
