"""Runs on a device with too little memory: the error names arrays, settings and files; nothing is lost."""

import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import pytest

from runs import finish, read, start, step_names, write_config
from sdft_jax import cli
from sdft_jax.algorithm.learner import make_model
from sdft_jax.config import load_config, sharding_from
from sdft_jax.errors import SdftError
from sdft_jax.models import read_architecture
from sdft_jax.plan.footprint import GIB, as_size, least_arrays, state_arrays, update_arrays
from sdft_jax.plan.program import model_shape
from sdft_jax.plan.topologies import parse_topology, topology_devices
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.training import out_of_memory
from sdft_jax.training.out_of_memory import explained, is_exhausted, refuse_too_large

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="no limit on a process's memory"),
    pytest.mark.usefixtures("shared_compilations"),
]

LIMIT = 2**36
"""The maximum memory of a process in bytes, so that the machine itself does not run out of memory."""
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
from sdft_jax import cli
sys.exit(cli.main(sys.argv[1:]))
"""
# 4,096 rows of 4,096 tokens, whose logits (155 of 4 bytes) exist at one time: 9.7 GiB for each role.
UPDATE = ("train.batch_size=4096", "sampling.max_new_tokens=4096", "divergence.chunk=100000000")
# keys and values of 2 layers, 4,096 rows, 65,536 slots and one head of width 16: 32 GiB each.
ANSWERS = ("eval.batch_size=4096", "eval.max_new_tokens=65536")


def limited(caches, *arguments, limit=LIMIT):
    process = start(["-c", LIMITED.format(limit=limit), *arguments], caches)
    return finish(process)


def test_update_that_does_not_fit_is_explained(tiny_directory, tmp_path, caches):
    output = tmp_path / "run"
    config = write_config(
        tmp_path / "run.yaml", tiny_directory, output, *UPDATE, "eval.path=null", "eval.prior=null"
    )
    code, errors = limited(caches, "train", config)
    assert code == 2, errors
    assert "sdft: out of memory in training: " in errors
    assert "Traceback" not in errors
    # 2^24 tokens of 155 logits, 4 bytes each: 9.69 GiB.
    assert "logits of a chunk, student [16777216, 155] float32: 9.69 GiB per device" in errors
    assert "activations attention scores of a layer [4096, 2, 32, 4128] float32: 4.03 GiB" in errors
    assert "train.micro_batch=2048, about " in errors
    assert "No step was saved; details are in " in errors
    table = output / "profile" / "memory.json"
    profile = output / "profile" / "memory.prof"
    assert f"details are in {table} and {profile}." in errors
    assert b".py" in gzip.decompress(profile.read_bytes())
    report = json.loads(table.read_text())
    names = {(row["kind"], row["name"]): row["bytes"] for row in report["arrays"]}
    # gate: 2 layers, 32 x 64, float32
    assert names["parameters", "layers/gate"] == names["optimizer", "mu layers/gate"] == 2 * 32 * 64 * 4
    assert names["teacher", "layers/gate"] == names["gradients", "layers/gate"] == 2 * 32 * 64 * 4
    assert {"KV cache", "decoding weights", "activations"} <= {kind for kind, _ in names}
    assert report["would save"]["train.micro_batch=2048"] > 2**35


def test_evaluation_that_does_not_fit_names_the_last_saved_step(finished, tiny_directory, tmp_path, caches):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "checkpoints" / "6")
    config = write_config(
        tmp_path / "run.yaml",
        tiny_directory,
        output,
        "baseline=true",
        "train.phases_every=4",
        f"eval.batch_size={2**20}",
    )
    code, errors = limited(caches, "train", config, limit=2**33)
    assert code == 2, errors
    assert "sdft: out of memory in the evaluation at step 6: " in errors
    assert "The last saved step is 6; details are in " in errors
    assert "base model" in (output / "profile" / "memory.json").read_text()
    assert step_names(output) == [4, 6]
    assert [row["step"] for row in read(output / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    # the same command with smaller batches resumes from there
    assert cli.main(["train", config, "eval.batch_size=8"]) == 0
    assert read(output / "metrics.jsonl") == read(finished / "metrics.jsonl")


def test_evaluation_without_training_is_explained(tiny_directory, caches):
    words = ["evaluate", str(tiny_directory), "mini:blax:heldout", "--task", "mini", "mesh.fsdp=1"]
    code, errors = limited(caches, *words, *ANSWERS, "eval.limit=8", "model.compute_dtype=float32")
    assert code == 2, errors
    (first,) = [line for line in errors.splitlines() if line.startswith("sdft: ")]
    assert first.startswith("sdft: out of memory in the evaluation: ")
    assert "evaluation KV cache keys [2, 4096, 1, 16, 65568] float32: 32.02 GiB per device" in errors
    assert "eval.batch_size=2048, about 32." in errors
    assert "teacher" not in errors


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (state_arrays, "the training state alone needs"),
        (least_arrays, "the training state and the KV cache alone need"),
    ],
)
def test_what_exceeds_a_device_is_refused_before_weights_are_read(
    arrays, message, tiny_directory, tmp_path, monkeypatch, capsys
):
    """A CPU has no limit; here it has that of an accelerator: one byte less than the arrays need."""
    path = write_config(tmp_path / "run.yaml", tiny_directory, tmp_path / "run", "mesh.fsdp=1")
    config = load_config(path)
    model = make_model(config, read_architecture(tiny_directory), sharding_from(config))
    monkeypatch.setattr(out_of_memory, "_statistics", dict)
    refuse_too_large(config, model, update_arrays)
    whole = sum(array.bytes for array in least_arrays(config, model))
    monkeypatch.setattr(out_of_memory, "_statistics", lambda: {"bytes_limit": whole})
    refuse_too_large(config, model, update_arrays)
    size = sum(array.bytes for array in arrays(config, model))
    monkeypatch.setattr(out_of_memory, "_statistics", lambda: {"bytes_limit": size - 1})
    assert cli.main(["train", path]) == 2
    assert not (tmp_path / "run").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdft: ")]
    assert line.startswith(f"sdft: {message} {as_size(size)} per device, and cpu has ")
    assert re.search(r": use \d such devices, or set ", line)
    assert "set model.param_dtype=bfloat16 (rounding removes small updates), about " in line


def test_adapters_and_devices_that_would_hold_the_model_are_named(monkeypatch):
    """Qwen2.5-7B: 16 bytes in the state for each of 7.6e9 parameters, on devices of 80 GiB."""
    config = load_config(None, ["model.path=Qwen2.5-7B", "sampling.max_new_tokens=512", "mesh.fsdp=1"])
    model = make_model(config, model_shape(config), sharding_from(config))
    monkeypatch.setattr(out_of_memory, "_statistics", lambda: {"bytes_limit": 80 * 2**30})
    with pytest.raises(SdftError) as error:
        refuse_too_large(config, model, update_arrays)
    assert str(error.value).startswith(
        "the training state alone needs 113.48 GiB per device, and cpu has 80.00 GiB: use 4 such devices, or "
        "set lora.rank=32 (trains only adapters of this rank), about 98."
    )


def test_slices_that_would_hold_adapters_of_a_base_in_bfloat16_are_named(monkeypatch):
    """On v5e-1, the state of Qwen2.5-7B in bfloat16 with adapters fits, but not beside a KV cache."""
    pytest.importorskip("libtpu")
    preset = Path(__file__).parents[2] / "configs" / "qwen2.5-7b-qlora.yaml"
    config = load_config(str(preset), ["lora.quantize=null"])
    chip = Sharding(make_mesh(devices=topology_devices(parse_topology("v5e-1"))), config.sharding)
    model = make_model(config, model_shape(config), chip)
    limit = 15.75 * GIB
    assert sum(array.bytes for array in state_arrays(config, model)) < limit
    monkeypatch.setattr(out_of_memory, "_statistics", lambda: {"bytes_limit": limit})
    with pytest.raises(
        SdftError,
        match=r"^the training state and the KV cache alone need 16\.\d\d GiB per device, and TPU v5.* has 15"
        r"\.75 GiB: use v5e-4, v6e-1 or v5p-8, or set lora\.quantize=int8 \(the base is less exact\), about ",
    ):
        refuse_too_large(config, model, update_arrays)


def test_an_error_of_the_compiler_names_the_devices_that_would_hold_the_run(monkeypatch):
    config = load_config(None, ["model.path=Qwen2.5-7B", "sampling.max_new_tokens=512", "mesh.fsdp=1"])
    model = make_model(config, model_shape(config), sharding_from(config))
    monkeypatch.setattr(out_of_memory, "_statistics", lambda: {"bytes_limit": 80 * GIB})
    with (
        pytest.raises(SdftError) as error,
        explained("an update", config, model, update_arrays),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory.")
    assert str(error.value).startswith(
        "out of memory in an update: RESOURCE_EXHAUSTED: Ran out of memory; without a change, it should fit "
        "on 4 such devices, as counted from shapes.\n"
    )


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explained("", None, None, None):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
    with pytest.raises(KeyError), explained("", None, None, None):
        raise KeyError("RESOURCE_EXHAUSTED")
    assert is_exhausted(ValueError("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory"))
