"""Tests of the work of trials: measurements of the trained model, and FLOPs of the compiled step."""

import json

import numpy as np
import pytest

from labs import tiny_arm, tiny_base, tiny_world
from sdft_jax.config.overrides import merge
from sdft_jax.data import read_rows
from sdft_jax.mini import lists as mini
from sdft_jax.studies.lab import work
from sdft_jax.studies.lab.worlds import World, lists

pytestmark = pytest.mark.usefixtures("shared_compilations")


@pytest.fixture(scope="module")
def world(tiny_directory):
    return tiny_world(tiny_directory)


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    return work.base(tiny_base(world).settings, tmp_path_factory.mktemp("base"))


def test_arm_measures_the_rows_of_its_split_and_samples_from_its_last_model(world, tmp_path, monkeypatch):
    watched = {"train": {"eval_every": 1}}
    sampling = {"n": 3, "prompts": 2}
    trial = tiny_arm(world, split="validation", changes=watched, pass_at_k=sampling)
    loaded = []
    load_model = work.load_model
    monkeypatch.setattr(
        work,
        "load_model",
        lambda directory, **options: (loaded.append(directory), load_model(directory, **options))[1],
    )
    result = work.arm(trial.settings, tmp_path)
    assert json.loads(json.dumps(result)) == result
    (measured,) = result["measured"]
    assert measured.keys() == {"blax", "prior"}
    for name, path in (("blax", "mini:blax:validation"), ("prior", "mini:old:validation")):
        rows = read_rows(path, "train")[:4]
        task = measured[name]
        assert task["correct"] == [
            int(mini.score(text, row)) for text, row in zip(task["completions"], rows, strict=True)
        ]
        assert task["accuracy"] == np.mean(task["correct"])
        assert 0 < task["length"] <= 12
        assert task["kl_to_base"] > 0
    assert [row["step"] for row in result["curve"]] == [0, 1, 2]
    assert result["curve"][-1]["tasks"] == {"blax": measured["blax"]["accuracy"]}
    assert np.shape(result["verdicts"]) == (2, 3)
    assert loaded == [str(tmp_path / "sft-lr1e-2-seed0" / "1-blax" / "model")]  # the model for the samples


def test_curve_of_adapters_ends_at_the_measurements_of_the_final_model(world, tmp_path):
    """The curve is measured with the base that the adapters share, the final model with the base on disk."""
    changes = {"lora": {"rank": 2, "alpha": 4.0}, "train": {"eval_every": 1}}
    result = work.arm(tiny_arm(world, changes=changes).settings, tmp_path)
    start, *_, end = result["curve"]
    (measured,) = result["measured"]
    assert "kl_to_base" not in start
    assert end["tasks"]["blax"] == measured["blax"]["accuracy"]
    assert end["prior"] == measured["prior"]["accuracy"]
    assert end["kl_to_base"] == pytest.approx(measured["prior"]["kl_to_base"], rel=1e-4)
    assert end["kl_to_base"] > 1e-6


def test_kl_to_base_is_zero_for_the_base_and_positive_for_the_teacher(base):
    measured = base["measured"]
    assert measured.keys() == {"student", "teacher"}
    assert measured["student"]["prior"]["kl_to_base"] == pytest.approx(0, abs=1e-6)
    assert measured["student"]["blax"]["kl_to_base"] == pytest.approx(0, abs=1e-6)
    assert measured["teacher"]["blax"]["kl_to_base"] > 1e-3
    assert "prior" not in measured["teacher"]


def test_verdicts_are_for_samples_of_the_first_prompts(tmp_path):
    """The embedded base model solves the old skills, also at temperature 1."""
    settings = merge(
        lists().settings,
        {"data": {"limit": 8}, "eval": {"limit": 4, "batch_size": 6, "teacher": False, "overlap": "allow"}},
    )
    known = World("known", settings, ("old",), 1, "mini:")
    trial = tiny_base(known, ("old",), pass_at_k={"n": 5, "prompts": 3})
    verdicts = work.base(trial.settings, tmp_path)["verdicts"]
    assert np.shape(verdicts) == (3, 5)
    assert set(np.ravel(verdicts)) <= {0, 1}
    assert np.mean(verdicts) > 0.8


SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 40,
}
ROWS, PROMPT, COMPLETION = 4, 6, 5


def cost_of(method):
    config = {
        "model": {"compute_dtype": "float32", "remat": "none"},
        "mesh": {"fsdp": 1},
        "train": {"method": method, "batch_size": ROWS},
        "sampling": {"max_new_tokens": COMPLETION},
    }
    return work.cost({"config": config, "model": SHAPE, "prompt": PROMPT, "teacher_prompt": 2 * PROMPT}, None)


def test_cost_counts_the_matrix_products_of_a_step():
    """By hand: the head reads completions only, and the gradient has two products for each forward one."""
    width, whole = 16, PROMPT + COMPLETION
    layer = width * (2 * 8 + 2 * 8 + 2 * 8) + 3 * width * 24  # q, k and v, o, feed-forward
    head = width * 40

    def forward(tokens, context, scored):
        """Return the FLOPs; scores and sums over values take 2 heads of 8 per token of context."""
        return 2 * ROWS * (tokens * (layer + 2 * context * 2 * 8) + scored * head)

    learning = 3 * forward(whole, whole, COMPLETION)
    teaching = forward(2 * PROMPT + COMPLETION, 2 * PROMPT + COMPLETION, COMPLETION)
    sampling = forward(PROMPT, PROMPT, 1) + (COMPLETION - 1) * forward(1, whole, 1)
    sft, sdft = cost_of("sft"), cost_of("sdft")
    assert sft["flops"] == pytest.approx(learning, rel=0.02)
    assert sdft["flops"] == pytest.approx(sampling + learning + teaching, rel=0.02)
    assert sft["seconds"] > 0
    assert sdft["seconds"] > 0
