"""`sdft plan`: its tables, its files, and its error messages."""

import json
from pathlib import Path

import pytest

from plans import SETTINGS, describe_model
from sdft_jax import cli

pytest.importorskip("libtpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return describe_model(tmp_path_factory)


def test_all_meshes_in_a_table_and_files(directory, capsys):
    output = directory / "out"
    options = ["--topology", "v5e-4", "--mesh", "all", "--fast", "--output", str(output)]
    small = ("train.batch_size=2", "train.method=sft")  # whose program compiles fast
    code = cli.main(["plan", str(directory / "run.yaml"), *SETTINGS, *options, *small])
    printed = capsys.readouterr().out
    assert code == 0
    assert "left out: v5e:2x2 fsdp=4: train.batch_size=2 is not divisible by the 4 parts" in printed
    assert "left out: v5e:2x2 tensor=4: layers.k" in printed
    assert {"1x2x2", "2x1x2"} <= set(printed.split())
    assert "Times are estimates, not measured on a TPU" in " ".join(printed.split())
    assert "Cost: $4.80 per hour at the list price of $1.20 per chip" in " ".join(printed.split())
    assert [line.rpartition("/")[2] for line in printed.splitlines()[-2:]] == ["plan.json", "plan.png"]
    estimates = json.loads((output / "plan.json").read_text())["estimates"]
    assert {tuple(x["mesh"].values()) for x in estimates} == {(1, 2, 2), (2, 1, 2)}
    assert all(x["fits"] and x["largest_batch"] is None for x in estimates)
    assert (output / "plan.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_update_that_is_too_large_names_the_excess_and_remedies(tmp_path, capsys):
    config = tmp_path / "big.yaml"
    config.write_text(json.dumps({"model": {"path": "Qwen2.5-7B"}}))
    assert cli.main(["plan", str(config), "--topology", "v5e-1", "--mesh", "fsdp=1", "--fast"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "It does not fit: not compiled: the state alone needs 113.5 GiB per device." in printed
    remedy = "model.param_dtype=bfloat16 (rounding removes small updates): needs about "
    adapters = "lora.rank=32 (trains only adapters of this rank): needs about "
    assert f"To reduce memory: {adapters}" in printed
    assert f"; {remedy}" in printed
    larger = "without a change, it should fit on v5e-16, v6e-8 or v5p-8, as counted from shapes."
    assert larger in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--topology", "v5e:4x5"), "--topology v5e:4x5: there is no such TPU topology; the nearest are"),
        (
            ("--topology", "v5e-4", "--mesh", "tensor=4"),
            "is not divisible by the 4 parts of mesh axis tensor",
        ),
        (("--topology", "v5e-4", "--mesh", "fsdp=4", "--output", "run.yaml"), "--output run.yaml is a file"),
        (("--topology", "v5e-4", "--price", "0"), "--price 0: give US dollars per chip and hour, above 0."),
    ],
)
def test_mistake_is_one_sentence(arguments, sentence, directory, monkeypatch, capsys):
    monkeypatch.chdir(directory)
    assert cli.main(["plan", "run.yaml", *arguments]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert Path("run.yaml").is_file()
