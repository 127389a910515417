"""A tiny update compiled for TPUs: numbers that can be checked by hand, and a program that is too large."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest

from sdft_jax import cli
from sdft_jax.config import load_config
from sdft_jax.plan.advice import advise
from sdft_jax.plan.estimate import estimate
from sdft_jax.plan.footprint import GIB, as_size
from sdft_jax.plan.program import model_shape
from sdft_jax.plan.topologies import Topology, parse_topology, topology_devices
from tiny import QWEN3

pytest.importorskip("libtpu")

SIZES = QWEN3 | {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 32,
}
SETTINGS = (
    "train.batch_size=8",
    "data.max_prompt=32",
    "data.max_teacher_prompt=64",
    "sampling.max_new_tokens=32",
    "divergence.chunk=64",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(SIZES))
    (path / "run.yaml").write_text(json.dumps({"model": {"path": str(path)}}))
    return path


@pytest.fixture(scope="module")
def planned(directory):
    output = directory / "out"
    code = cli.main(
        [
            "plan",
            str(directory / "run.yaml"),
            *SETTINGS,
            "--topology",
            "v5e-4",
            "--mesh",
            "fsdp=2,tensor=2",
            "--output",
            str(output),
        ]
    )
    assert code == 0
    return output


def test_the_report_says_what_by_hand_can_be_counted(planned):
    report = json.loads((planned / "plan.json").read_text())
    (one,) = report["estimates"]
    # Embedding and head; per layer q and o, k and v, three of the feed-forward; norms are small change.
    layer = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256
    weights = 2 * 512 * 128 + 2 * layer
    assert one["parts"]["parameters"] == pytest.approx(4 * weights / 4, rel=0.02)
    assert one["parts"]["optimizer"] == pytest.approx(2 * one["parts"]["parameters"], rel=0.01)
    # attention lies in the two parts of `tensor`, all else in four
    attention = 2 * (2 * 128 * 128 + 2 * 128 * 64)
    decoding = attention / 2 + (weights - attention) / 4
    assert one["parts"]["decoding weights"] == pytest.approx(2 * decoding, rel=0.02)
    # keys and values of 2 layers, 8 / 2 rows, 64 slots, 2 / 2 heads of width 32, two bytes each
    assert one["parts"]["KV cache"] == 2 * 2 * 4 * 64 * 1 * 32 * 2
    assert one["peak"] > one["state"] > 0
    assert sum(one["temporaries"].values()) == pytest.approx(one["peak"] - one["state"], rel=0.01)
    assert one["fits"]
    assert one["largest_batch"] > 8
    # Every weight of the decoder meets each of 8 x 64 student tokens four times (forward, twice backward, and
    # once more, rematerialised), 8 x 96 teacher tokens once and 8 x 64 sampled ones once; heads only
    # completions: student three times, teacher once, sampled once.
    decoder, head, rows = 2 * layer, 512 * 128, 8
    products = decoder * rows * (4 * 64 + 96 + 63) + head * rows * 32 * (3 + 1 + 1)
    assert 4 * one["flops"] == pytest.approx(2 * products, rel=0.15)  # attention comes on top
    assert {"prefill", "decode", "teacher", "student", "backward"} <= one["seconds"].keys()
    assert {x["kind"] for x in one["exchanges"]} >= {"all-gather", "all-reduce"}
    assert "measured on no TPU" in report["caveat"]


def test_there_is_a_picture(planned):
    assert (planned / "plan.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("setting", ["teacher.schedule=live", "train.method=sft"])
def test_what_has_no_weights_of_a_teacher_is_planned_too(setting, directory):
    output = directory / setting
    words = ["--topology", "v5e-1", "--mesh", "fsdp=1", "--fast", "--output", str(output)]
    assert cli.main(["plan", str(directory / "run.yaml"), *SETTINGS, setting, *words]) == 0
    (one,) = json.loads((output / "plan.json").read_text())["estimates"]
    assert one["parts"]["teacher"] == 0
    assert one["peak"] > one["parts"]["parameters"] + one["parts"]["optimizer"] > 0


def test_of_several_meshes_those_that_do_not_divide_are_left_out(directory, capsys):
    code = cli.main(
        [
            "plan",
            str(directory / "run.yaml"),
            *SETTINGS,
            "--topology",
            "v5e-4",
            "--mesh",
            "all",
            "--fast",
            "train.batch_size=2",
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "left out: v5e:2x2 fsdp=4: train.batch_size=2 is not divisible by the 4 parts" in printed
    assert "left out: v5e:2x2 tensor=4: layers.k" in printed
    assert {"1x2x2", "2x1x2"} <= set(printed.split())


def test_what_is_too_large_says_by_how_much_and_what_would_help(tmp_path, capsys):
    config = tmp_path / "big.yaml"
    config.write_text(json.dumps({"model": {"path": "Qwen2.5-7B"}}))
    words = ["plan", str(config), "--topology", "v5e-4", "--mesh", "fsdp=4", "--fast"]
    assert cli.main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not compiled: the state alone is 28.4 GiB a device" in printed
    assert "What would make it smaller: model.param_dtype=bfloat16 (small steps are then lost): " in printed
    assert "GiB too much; none of these suffices, so take more chips." in printed


def test_what_is_advised_is_what_the_compiler_says(directory):
    """Of a chip with too little memory for one setting; of one with far too little, nothing is compiled."""
    whole, mesh = parse_topology("v5e-1"), {"data": 1, "fsdp": 1, "tensor": 1}
    devices = topology_devices(whole)

    def of(chip, *settings):
        config = load_config(directory / "run.yaml", [*SETTINGS, "model.remat=none", *settings])
        shape = model_shape(config)
        one = estimate(config, shape, chip, devices, mesh, config.sharding, "")
        return one, functools.partial(advise, config, shape, one, chip, devices, config.sharding)

    def with_memory(size):
        return Topology(dataclasses.replace(whole.generation, hbm_gib=size / GIB), whole.shape)

    large, advice = of(whole)
    assert advice(compiling=True) == ()
    setting = "model.param_dtype=bfloat16"
    then, _ = of(whole, setting)
    room = (large.peak - then.peak) / 2
    one, advice = of(with_memory(then.peak + room))
    assert not one.fits
    first, *others = advice(compiling=True)
    told = f"needs {as_size(then.peak)}, fits with {as_size(room)} free"
    assert first == f"{setting} (small steps are then lost): {told}"
    assert all("needs about" in line for line in others)  # one that suffices is enough
    assert all("needs about" in line for line in advice(compiling=False))
    _, advice = of(with_memory(one.state / 10))
    *lines, last = advice(compiling=True)
    assert last == "none of these suffices, so take more chips"
    assert all(line.endswith("too much") for line in lines)
    assert f"{setting} (small steps are then lost) with " in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--topology", "v5e:4x5"), "--topology v5e:4x5: there is no such TPU topology; the nearest are"),
        (
            ("--topology", "v5e-4", "--mesh", "tensor=4"),
            "is not divisible by the 4 parts of mesh axis tensor",
        ),
        (("--topology", "v5e-4", "--mesh", "fsdp=4", "--output", "run.yaml"), "--output run.yaml is a file"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, directory, monkeypatch, capsys):
    monkeypatch.chdir(directory)
    assert cli.main(["plan", "run.yaml", *arguments]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert Path("run.yaml").is_file()
