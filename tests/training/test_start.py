"""Runs with adapters: their start, their checkpoints, their resumption and their results."""

import json
import math
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from make_fixtures import DIRECTORY
from runs import config_of, read, step_names, write_model
from sdft_jax import cli
from sdft_jax.algorithm import make_model
from sdft_jax.config import load_config, sharding_from
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, load_model, read_architecture
from sdft_jax.models.lora import A, B, adapter_params, base_params, is_adapter
from sdft_jax.training.checkpoint import read_meta
from sdft_jax.training.export import export, load_run, load_speaker
from sdft_jax.training.inputs import load_inputs
from sdft_jax.training.loop import train
from sdft_jax.training.run_directory import RunDirectory
from sdft_jax.training.start import load_start
from tiny import EXPERTS, ragged
from wrapped import OLD, OTHERS, wrap

pytestmark = pytest.mark.usefixtures("shared_compilations")

LORA = ("lora.rank=4", "optimizer.learning_rate=1e-2")
GEMMA = dict(architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", sliding_window=16)
logits_of = jax.jit(Model.logits, static_argnums=0)


def assert_identical(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))


def logits(model, params):
    return np.asarray(logits_of(model, params, ragged(np.random.default_rng(0), 2, 9)))


def start_of(directory, *overrides):
    config = config_of(directory, "unused", *LORA, *overrides)
    model = make_model(config, read_architecture(directory), sharding_from(config), str(directory))
    return model, load_start(config, model, str(directory))


@pytest.fixture(scope="module")
def adapted_run(tiny_directory, tmp_path_factory, shared_compilations):
    """The output of a finished run with adapters, and its result."""
    output = tmp_path_factory.mktemp("adapted") / "run"
    return output, train(config_of(tiny_directory, output, *LORA))


def test_initial_adapters_are_the_same_on_every_mesh(tiny_directory):
    _, one = start_of(tiny_directory)
    assert_identical(base_params(one), load_model(tiny_directory)[1])
    _, other = start_of(tiny_directory, "mesh.data=2", "mesh.fsdp=2")
    assert_identical(jax.device_get(one), jax.device_get(other))
    _, reseeded = start_of(tiny_directory, "train.seed=1")
    assert not np.array_equal(one["layers"]["q_lora_a"], reseeded["layers"]["q_lora_a"])


def test_a_base_in_bfloat16_has_float32_adapters(tiny_directory):
    _, params = start_of(tiny_directory, "model.compute_dtype=bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(base_params(params))} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(adapter_params(params))} == {"float32"}


def test_a_run_trains_and_its_model_is_merged(adapted_run, tiny_directory):
    output, run = adapted_run
    assert_identical(base_params(run.params), load_model(tiny_directory)[1])
    first, *_, last = run.evaluations
    assert "kl_to_base" not in first
    assert min(last["kl_to_base"], last["distance"]) > 1e-2
    model, params = load_model(output / "model")
    assert not any(map(is_adapter, params["layers"]))
    np.testing.assert_allclose(logits(model, params), logits(run.model, run.params), atol=1e-4)
    moved = [
        np.sum((np.float64(params["layers"][name]) - run.params["layers"][name]) ** 2) for name in "qkvo"
    ]
    assert 0 < sum(moved) < last["distance"] ** 2


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_of_embedding_and_head_train_and_are_merged(tied, tmp_path):
    """If the two are one matrix, they are two in the merged model, which is the same function."""
    write_model(tmp_path / "base", tied)
    settings = (*LORA, "lora.targets=[v,embed,head]", "train.steps=2", "eval.path=null")
    run = train(config_of(tmp_path / "base", tmp_path / "run", *settings))
    model, params = load_model(run.exported)
    assert not model.architecture.tie_word_embeddings
    np.testing.assert_allclose(logits(model, params), logits(run.model, run.params), atol=1e-4)
    scale, rank = run.model.architecture.lora.scale, run.model.architecture.lora.rank
    every = {**run.params, **run.params["layers"]}
    squares = 0.0
    for name in ("v", "embed", "head"):
        a, b = (np.float64(every[f"{name}_lora_{factor}"]) for factor in "ab")
        b = b.T if name == "head" else b
        a, b = a.reshape(-1, *a.shape[-2:]), b.reshape(len(a) if name == "v" else 1, rank, -1)
        squares += np.sum(np.square(scale * a @ b))
    last = run.evaluations[-1]
    assert last["distance"] == pytest.approx(squares**0.5, rel=1e-4)
    assert last["kl_to_base"] > 0


def test_a_wrapper_trains_and_every_export_is_one(tmp_path):
    write_model(tmp_path / "base", tied=True, **GEMMA)
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    wrap(tmp_path / "base", OLD, outer)
    settings = (*LORA, "lora.targets=[v,embed]", "train.steps=1", "eval.path=null")
    run = train(config_of(tmp_path / "base", tmp_path / "run", *settings))
    export(str(tmp_path / "run"), str(tmp_path / "merged"), merge=True)
    base, own, merged = (
        load_file(path / "model.safetensors")
        for path in (tmp_path / "base", Path(run.exported), tmp_path / "merged")
    )
    head = "language_model.lm_head.weight"
    assert own.keys() == merged.keys() == base.keys() | {head}
    assert {name for name in base if base[name].tobytes() == own[name].tobytes()} > OTHERS.keys()
    for name, tensor in own.items():
        np.testing.assert_allclose(merged[name], tensor, atol=1e-6)
    assert not np.array_equal(own["language_model.model.embed_tokens.weight"], own[head])
    export(str(tmp_path / "run"), str(tmp_path / "adapter"))
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.language_model.") for name in names)


def test_checkpoints_hold_the_adapters_their_ema_and_the_optimizer(adapted_run):
    """Four times the bytes of the adapters and a few numbers, and less than 8 KB of Orbax's own an array.

    Orbax writes a checkpoint in one or several parts, by their timing.
    """
    output, run = adapted_run
    checkpoint = output / "checkpoints" / "6"
    arrays = read_meta(epath.Path(checkpoint))["arrays"]
    assert {name.split("/")[0] for name in arrays} == {"params", "teacher", "opt_state", "step", "key"}
    layers = {name.rsplit("/", 1)[1] for name in arrays if "/layers/" in name}
    assert layers == set(adapter_params(run.params)["layers"])
    adapters = sum(x.nbytes for x in jax.tree.leaves(adapter_params(run.params)))
    sizes = [re.findall(r"\d+", spec.partition("[")[2]) for spec, _ in arrays.values()]
    assert {spec.partition("[")[0] for spec, _ in arrays.values()} <= {"float32", "int32", "uint32"}
    stored = sum(4 * math.prod(map(int, size)) for size in sizes)
    assert 0 <= stored - 4 * adapters < 64
    files = [file for file in (checkpoint / "state").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < stored + 8192 * len(arrays)


def test_the_reference_of_distances_is_not_the_source_of_the_exported_model(tmp_path):
    write_model(tmp_path / "base", tied=True)
    write_model(tmp_path / "other")
    (tmp_path / "other" / "generation_config.json").write_text('{"top_k": 7}')
    settings = (*LORA, "lora.quantize=nf4", "train.steps=1", "eval.prior=null", "train.eval_every=0")
    run = train(config_of(tmp_path / "base", tmp_path / "run", *settings, f"eval.base={tmp_path / 'other'}"))
    assert run.evaluations[0]["distance"] > 1
    assert load_model(run.exported)[0].architecture.tie_word_embeddings
    assert not (run.exported / "generation_config.json").exists()


def test_a_reference_of_another_architecture_is_refused_before_the_run_is_written(tiny_directory, tmp_path):
    other = DIRECTORY / "qwen2"
    with pytest.raises(SdftError, match=rf"^eval\.base={other} has other parameters than the model: "):
        train(config_of(tiny_directory, tmp_path / "run", *LORA, f"eval.base={other}"))
    assert not (tmp_path / "run").exists()


def test_a_run_with_a_quantized_base(tiny_directory, tmp_path):
    """Its checkpoint has no codes, and what it exports is the model that it evaluated."""
    options = (*LORA, "lora.quantize=nf4", "train.steps=2")
    output = tmp_path / "run"
    run = train(config_of(tiny_directory, output, *options))
    base = load_model(tiny_directory, quantize="nf4")[1]
    assert_identical(base_params(run.params), base)
    arrays = read_meta(epath.Path(output / "checkpoints" / "2"))["arrays"]
    assert {name.rsplit("/", 1)[1] for name in arrays if "/layers/" in name} == set(
        adapter_params(run.params)["layers"]
    )
    model, params = load_model(output / "model")
    np.testing.assert_allclose(logits(model, params), logits(run.model, run.params), atol=1e-4)
    export(str(output), str(tmp_path / "merged"), merge=True)
    files = [path / "model.safetensors" for path in (tmp_path / "merged", output / "model")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert_identical(load_run(RunDirectory(str(output)))[1], run.params)
    products = [
        run.model.architecture.lora.scale
        * np.matmul(*(np.float64(run.params["layers"][name + x]) for x in (A, B)))
        for name in ("gate", "up", "down")
    ]
    assert 0 < sum(np.sum(x**2) for x in products) < run.evaluations[-1]["distance"] ** 2 * 1.001
    with pytest.raises(SdftError, match=r"lora\.quantize"):
        train(config_of(tiny_directory, output, *LORA, "train.steps=2"))


def test_a_run_with_a_frozen_teacher_stores_no_teacher(tiny_directory, tmp_path):
    train(config_of(tiny_directory, tmp_path / "run", *LORA, "teacher.schedule=frozen", "train.steps=2"))
    arrays = read_meta(epath.Path(tmp_path / "run" / "checkpoints" / "2"))["arrays"]
    assert not any(name.startswith("teacher") for name in arrays)


def test_a_resumed_run_is_bit_identical(adapted_run, tiny_directory, tmp_path):
    output, _ = adapted_run
    copy = shutil.copytree(output, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "6")
    shutil.rmtree(copy / "model")
    train(config_of(tiny_directory, copy, *LORA))
    assert step_names(copy) == step_names(output)
    assert read(copy / "metrics.jsonl") == read(output / "metrics.jsonl")
    assert read(copy / "evaluations.jsonl") == read(output / "evaluations.jsonl")
    for path in ("model/model.safetensors",):
        assert (copy / path).read_bytes() == (output / path).read_bytes()
    one, two = (read_meta(epath.Path(run / "checkpoints" / "6"))["arrays"] for run in (copy, output))
    assert one == two


def test_a_checkpoint_is_restored_on_another_mesh(adapted_run, tiny_directory, tmp_path):
    output, run = adapted_run
    copy = shutil.copytree(output, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "6")
    resumed = train(config_of(tiny_directory, copy, *LORA, "mesh.data=2", "mesh.fsdp=2"))
    for one, two in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(run.params), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_the_best_checkpoint_is_joined_with_the_base(tiny_directory, tmp_path):
    run = train(
        config_of(
            tiny_directory, tmp_path / "run", *LORA, "train.choose=best", "train.steps=3", "eval.prior=null"
        )
    )
    assert any(map(is_adapter, run.params["layers"]))
    assert_identical(load_run(RunDirectory(str(tmp_path / "run")), best=True)[1], run.params)


def test_export_writes_an_adapter_or_a_plain_checkpoint(adapted_run, tiny_directory, tmp_path, capsys):
    output, run = adapted_run
    assert cli.main(["export", str(output), str(tmp_path / "adapter")]) == 0
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(tiny_directory)
    assert cli.main(["export", str(output), str(tmp_path / "merged"), "--merge"]) == 0
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == (
        output / "model" / "model.safetensors"
    ).read_bytes()
    _, params = start_of(tiny_directory, f"lora.adapter={tmp_path / 'adapter'}")
    assert_identical(params, run.params)


def test_the_run_keeps_its_own_model(adapted_run):
    output, _ = adapted_run
    with pytest.raises(SdftError, match="is the run's own model: write to another directory"):
        export(str(output), str(output / "model"))
    assert (output / "model" / "model.safetensors").exists()


def test_sample_and_evaluate_read_a_run_or_base_and_adapter(adapted_run, tiny_directory, tmp_path, capsys):
    output, run = adapted_run
    export(str(output), str(tmp_path / "adapter"))
    for overrides in (
        [f"model.path={output}"],
        [f"model.path={tiny_directory}", "lora.rank=4", f"lora.adapter={tmp_path / 'adapter'}"],
    ):
        config = load_config(None, ["model.compute_dtype=float32", "mesh.fsdp=1", *overrides])
        assert_identical(load_speaker(config).params, run.params)


def test_a_run_has_its_own_adapters(adapted_run, tmp_path):
    output, _ = adapted_run
    settings = [f"model.path={output}", "model.compute_dtype=float32", "mesh.fsdp=1"]
    load_speaker(load_config(None, [*settings, "lora.rank=4"]))
    with pytest.raises(SdftError, match="is a run, which has its own adapters: remove the settings of lora"):
        load_speaker(load_config(None, [*settings, "lora.rank=4", "lora.alpha=8"]))


def test_adapters_of_a_base_that_changed_are_refused(tiny_directory, tmp_path):
    base = shutil.copytree(tiny_directory, tmp_path / "base")
    train(config_of(base, tmp_path / "run", *LORA, "train.steps=1", "eval.path=null", "eval.prior=null"))
    tensors = load_file(base / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, base / "model.safetensors")
    for merge in (False, True):
        with pytest.raises(SdftError, match="the weights changed since the run trained adapters of them"):
            export(str(tmp_path / "run"), str(tmp_path / "out"), merge=merge)


def test_a_run_that_starts_from_an_adapter(adapted_run, tiny_directory, tmp_path):
    """Its frozen teacher is the initial model, and its distances before training are from the base."""
    output, run = adapted_run
    export(str(output), str(tmp_path / "adapter"))
    options = (*LORA, f"lora.adapter={tmp_path / 'adapter'}", "teacher.schedule=frozen", "train.steps=2")
    config = config_of(tiny_directory, tmp_path / "run", *options)
    inputs = load_inputs(config)
    assert "the weights of the adapter" in inputs.digests
    second = train(config, inputs)
    assert second.evaluations[0]["kl_to_base"] == pytest.approx(run.evaluations[-1]["kl_to_base"], rel=1e-4)
    arrays = read_meta(epath.Path(tmp_path / "run" / "checkpoints" / "2"))["arrays"]
    assert any(name.startswith("teacher") for name in arrays)


@pytest.fixture(scope="module")
def wrong(adapter_directories, tmp_path_factory):
    """Directories by name: an adapter of rank 4, another base of the same sizes, and a model with experts."""
    directory = tmp_path_factory.mktemp("wrong")
    write_model(directory / "other", tied=True)
    write_model(directory / "experts", **EXPERTS | {"architectures": ["Qwen3MoeForCausalLM"]})
    return {"adapter": adapter_directories[0], "other": directory / "other", "experts": directory / "experts"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.rank=8", "lora.adapter={adapter}"], "has rank 4, and lora.rank=8: set lora.rank=4"),
        (
            ["model.path={other}", "lora.adapter={adapter}"],
            "the adapter was trained on other weights than those in {other}, or on the same ones in another "
            "dtype or layout: set model.path to its base, which was owner/base.",
        ),
        (
            ["model.path={experts}", "lora.targets=[q]", "lora.quantize=int8"],
            "quantize=int8 is not supported for qwen3_moe models",
        ),
        (
            ["lora.targets=[q,attn]"],
            "'attn' matches no projection: use layers, or some of q, k, v, o, gate, up, down, embed",
        ),
        (["lora.rank=33"], "lora.rank=33 is above the rank of projection k"),
        (["lora.adapter=nowhere"], "adapter_config.json"),
        (["lora.adapter="], "lora.adapter is empty: give the directory of a PEFT adapter, or null"),
        (["lora.rank=0", "lora.adapter=nowhere"], "set lora.rank to r of its adapter_config.json"),
        (["optimizer.freeze=[embed]"], "remove one of the two settings"),
        (["lora.alpha=0"], "lora.alpha"),
        (["lora.quantize=int4"], "lora.quantize"),
        (["lora.rank=0", "lora.quantize=int8"], "set lora.rank, or lora.quantize=null"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence_before_the_run_directory_exists(
    overrides, message, tiny_directory, wrong, tmp_path, capsys
):
    own = [text.format(**wrong) for text in overrides]
    settings = ["mesh.fsdp=1", "data.path=mini:blax", "lora.rank=4", *own]
    arguments = [f"model.path={tiny_directory}", f"output={tmp_path / 'run'}", *settings]
    (tmp_path / "run.yaml").write_text("")
    assert cli.main(["train", str(tmp_path / "run.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message.format(**wrong) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
