"""The lowered update is the one that training runs, and counted arrays are those that it allocates."""

import json

import jax
import pytest

from runs import config_of
from sdft_jax.algorithm.learner import make_learner, make_model
from sdft_jax.algorithm.state import init_state
from sdft_jax.config import load_config
from sdft_jax.data import make_batches
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, architecture_from_dict
from sdft_jax.models.lora import base_params
from sdft_jax.plan.footprint import by_kind, update_arrays
from sdft_jax.plan.program import abstract_batch, lower_update, matmul_work, model_shape, planned_learner
from sdft_jax.plan.topologies import parse_topology, topology_devices
from sdft_jax.sampling.layout import lay_out_for_decoding
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.training.inputs import load_inputs
from sdft_jax.types import NO_STOP
from tiny import QWEN3

# Parameters without the embedding and with it, as the model cards give them.
CARDS = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Olmo-3-7B": 7_298_011_136,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,  # of Gemma and Ministral, those of the text model
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Ministral-3-3B-2512": 3_429_006_336,
    "Ministral-3-8B-2512": 8_489_553_920,
    "SmolLM3-3B": 3_075_098_624,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Phi-4-mini": 3_836_021_760,
    "phi-4": 14_659_507_200,
    "Qwen3.5-9B": 8_953_803_264,  # of the text model alone, as transformers counts them
    "gpt-oss-20b": 20_914_757_184,
    "Qwen3.5-35B-A3B": 34_660_610_688,
    "gemma-4-26B-A4B": 25_233_141_790,
    "gemma-4-E2B": 4_628_569_379,
    "gemma-4-E4B": 7_463_013_418,
    "gemma-4-12B": 11_907_350_320,  # the same, with the scalar of each layer, a buffer in transformers
    "gemma-4-31B": 30_697_345_340,
}


@pytest.mark.parametrize("name", CARDS)
def test_known_models_have_the_number_of_parameters_on_their_cards(name):
    architecture = model_shape(load_config(None, [f"model.path=Qwen/{name}-Instruct"]))
    params = Model(architecture).abstract_params()
    assert sum(x.size for x in jax.tree.leaves(params)) == CARDS[name]


def test_names_of_tuned_models_are_those_of_their_base():
    names = (
        "google/gemma-3-1b-it",
        "allenai/Olmo-3-7B-Think",
        "Qwen2.5-3B",
        "mistralai/Ministral-3-3B-Instruct-2512-BF16",
        "microsoft/Phi-4-mini-instruct",
    )
    shapes = [model_shape(load_config(None, [f"model.path={name}"])) for name in names]
    assert [shape.hidden_size for shape in shapes] == [1152, 4096, 2048, 3072, 3072]


def test_directory_needs_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    architecture = model_shape(load_config(None, [f"model.path={tmp_path}"]))
    assert architecture.hidden_size == QWEN3["hidden_size"]


def test_error_for_an_unknown_model_lists_the_known_ones():
    with pytest.raises(
        SdftError, match=r"model\.path=a/b: planning needs the model's config\.json.*Qwen2\.5-7B"
    ):
        model_shape(load_config(None, ["model.path=a/b"]))


@pytest.mark.parametrize("method", ["sdft", "sft", "offline_kl", "cpt"])
def test_abstract_batch_has_the_arrays_of_a_real_one(method, tiny_directory):
    field = ["data.text=prompt"] if method == "cpt" else []
    config = config_of(tiny_directory, "unused", f"train.method={method}", *field)
    inputs = load_inputs(config)
    real = next(make_batches(inputs.train, config, inputs.stop.pad_id))
    planned = abstract_batch(config, Sharding(make_mesh(1, 8, 1)))
    assert jax.tree.structure(planned) == jax.tree.structure(real)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(planned), jax.tree.leaves(real), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert ours.dtype == theirs.dtype, name
        assert ours.shape[0] == theirs.shape[0], name
        if ours.ndim > 1:  # maximum lengths, while the real batch fits its rows
            assert (ours.shape[1] > 0) == (theirs.shape[1] > 0), name
            assert ours.shape[1] >= theirs.shape[1], name


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
def test_counted_bytes_are_those_that_training_allocates(mesh, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    config = load_config(
        None,
        [
            f"model.path={tmp_path}",
            "train.batch_size=8",
            "data.max_prompt=6",
            "sampling.max_new_tokens=5",
            "model.compute_dtype=float32",
        ],
    )
    model = make_model(config, model_shape(config), Sharding(make_mesh(*mesh)))
    parts = by_kind(update_arrays(config, model))
    learner = make_learner(config, model, 10, NO_STOP)
    state = init_state(learner, model.init(jax.random.key(0)))

    def on_first(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    assert parts["parameters"] == parts["gradients"] == on_first(state.params)
    assert parts["optimizer"] == on_first(state.opt_state)
    assert parts["teacher"] == on_first(state.teacher)
    laid_out = jax.jit(lambda params: lay_out_for_decoding(model, params)[1])(state.params)
    assert parts["decoding weights"] == on_first(laid_out)
    # prompts are padded to a multiple of 8
    cache = jax.jit(lambda: model.init_cache(8, 8 + 5))()
    assert parts["KV cache"] == on_first(cache.states)


def test_work_of_a_method_without_sampling_is_learning(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    settings = [
        f"model.path={tmp_path}",
        "train.batch_size=2",
        "data.max_prompt=8",
        "sampling.max_new_tokens=8",
    ]
    sdft, sft = (load_config(None, [*settings, f"train.method={name}"]) for name in ("sdft", "sft"))
    work = matmul_work(sft, model_shape(sft))
    assert (work.rollout, work.learn > work.attention > 0) == (0, True)
    assert matmul_work(sdft, model_shape(sdft)).rollout > 0


def test_method_that_does_not_train_has_no_update(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    config = load_config(None, [f"model.path={tmp_path}", "train.method=oracle"])
    with pytest.raises(SdftError, match=r"train\.method=oracle does not train"):
        lower_update(
            planned_learner(config, make_model(config, model_shape(config), Sharding(make_mesh(1, 8, 1))))
        )


@pytest.mark.parametrize(("schedule", "quantize"), [("frozen", None), ("ema", "int8")])
def test_adapters_need_no_second_base(schedule, quantize):
    """Rollout, student and teacher read the one base: arguments and temporaries are below 1.5 bases.

    Full fine-tuning of this model has five bases of arguments.
    """
    pytest.importorskip("libtpu")
    config = load_config(
        None,
        [
            "lora.rank=2",
            "lora.targets=[q,v,down,embed,head]",
            f"lora.quantize={quantize or 'null'}",
            f"teacher.schedule={schedule}",
            "train.batch_size=8",
            "sampling.max_new_tokens=16",
            "data.max_prompt=16",
            "data.max_teacher_prompt=32",
        ],
    )
    sizes = dict(num_hidden_layers=16, hidden_size=512, intermediate_size=1536, head_dim=64, vocab_size=1024)
    sharding = Sharding(make_mesh(devices=topology_devices(parse_topology("v5e-1"))), config.sharding)
    model = make_model(config, architecture_from_dict(QWEN3 | sizes), sharding)
    base = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(base_params(model.abstract_params("float32")))
    )
    memory = lower_update(planned_learner(config, model)).compile().memory_analysis()
    assert base < memory.argument_size_in_bytes + memory.temp_size_in_bytes < 1.5 * base
