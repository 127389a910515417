"""The card of a run: the facts of the run directory, in metadata that the Hub reads and in words."""

import dataclasses

import pytest
import yaml
from huggingface_hub import ModelCard

from runs import config_of
from sdft_jax.config import load_config
from sdft_jax.config.methods import MethodName
from sdft_jax.training.run_card import RunFacts, run_card

PROVENANCE = {
    "sources": {
        "training": {
            "source": "owner/rows",
            "hub": "owner/rows",
            "rows": 24,
            "dropped": 2,
            "digest": "1234567890abcdef",
        },
        "new skill": {
            "source": "held-out.jsonl",
            "rows": 8,
            "dropped": 0,
            "digest": "abcdef1234567890",
            "sha256": "ab" * 32,
        },
    },
    "digests": {"the weights of the model": "0011223344556677", "the training rows": "1234567890abcdef"},
    "versions": {"sdft_jax": "9.9"},
    "hardware": "8 x TPU v5e; jax 0.10.2",
}
EVALUATIONS = (
    {"step": 0, "accuracy": 0.0, "teacher": 1.0, "prior": 0.75},
    {"step": 4, "accuracy": 0.25, "prior": 0.75, "kl_to_base": 0.01},
    {"step": 6, "accuracy": 0.5, "prior": 0.625, "kl_to_base": 0.0154},
)


@pytest.fixture
def facts(tiny_directory):
    return RunFacts(config_of(tiny_directory, "/home/me/runs/mine"), 6, EVALUATIONS, PROVENANCE)


def with_settings(facts, *overrides):
    return dataclasses.replace(facts, config=config_of(facts.config.model.path, "/home/me/run", *overrides))


def test_metadata(facts):
    data = ModelCard(run_card(facts, "me/mine", "owner/base")).data
    assert (data.base_model, data.base_model_relation) == ("owner/base", "finetune")
    assert (data.library_name, data.datasets) == ("transformers", ["owner/rows"])
    assert {"sdft", "self-distillation"} <= set(data.tags)
    (result,) = data.eval_results  # the rows of old skills have no source here
    assert (result.metric_value, result.dataset_name, data.model_name) == (0.5, "held-out.jsonl", "me/mine")


def test_evaluation_before_and_after_with_intervals(facts):
    """The interval of 4 of 8 is Wilson's, from a calculator: 0.215 to 0.785."""
    card = run_card(facts, "mine")
    assert "| before training | 0.000 [0.000, 0.324] | 0.750 | – |" in card
    assert "| before training, with the demonstration in context | 1.000 [0.676, 1.000] | – | – |" in card
    assert "| this model (step 6) | 0.500 [0.215, 0.785] | 0.625 | 0.015 |" in card
    assert "0.250" not in card


def test_without_old_skills_the_card_explains_no_distance(facts):
    assert "KL to base: KL(model ‖ base)" in run_card(facts, "mine")
    new = tuple({key: row[key] for key in ("step", "accuracy")} for row in EVALUATIONS)
    assert "KL to base" not in run_card(dataclasses.replace(facts, evaluations=new), "mine")


def test_a_checkpoint_that_was_not_evaluated_has_no_results(facts):
    card = run_card(dataclasses.replace(facts, step=5), "mine")
    assert "| before training |" in card
    assert "this model" not in card
    assert ModelCard(card).data.eval_results is None


def test_data_with_checksums(facts):
    card = run_card(facts, "mine")
    assert "| training | `owner/rows` | 24 | 2 | – | `1234567890abcdef` |" in card
    assert "The SHA-256 of a directory is that of the lines that `sha256sum` prints" in card
    assert f"| new skill | `held-out.jsonl` | 8 | 0 | `{'ab' * 32}` | `abcdef1234567890` |" in card
    assert "the weights of the model `0011223344556677`" in card
    assert "large source" not in card
    large = {"sources": {"training": PROVENANCE["sources"]["training"] | {"rows": 10**6, "checked": 4096}}}
    card = run_card(dataclasses.replace(facts, provenance=PROVENANCE | large), "mine")
    assert "| training | `owner/rows` | 1000000 | 2 of 4096 checked | – | `1234567890abcdef` |" in card
    assert "Of a large source, only a part of the rows was checked before training" in card
    assert "sdft_jax 9.9; trained on 8 x TPU v5e; jax 0.10.2." in card


def test_method_in_words(facts):
    card = run_card(
        with_settings(facts, "divergence.alpha=0", "teacher.rate=0.02", "sampling.top_p=0.95"), "mine"
    )
    assert "- Divergence: forward KL, KL(teacher ‖ model), over the whole vocabulary." in card
    assert "- Teacher: exponential moving average of the model's weights, at rate 0.02 per step." in card
    assert "- Sampling: temperature 1.0, top-p 0.95, at most 12 tokens." in card
    card = run_card(
        with_settings(facts, "divergence.alpha=0.5", "divergence.support=teacher", "teacher.schedule=frozen"),
        "mine",
    )
    assert "Jensen-Shannon divergence with alpha 0.5, over the 100 most likely tokens (teacher)." in card
    assert "- Teacher: the initial weights." in card


def test_arguments_of_the_chat_template(facts):
    off = "data.template_kwargs.enable_thinking=false"
    on = "data.teacher_template_kwargs.enable_thinking=true"
    card = run_card(with_settings(facts, off, on, "data.thoughts=remove"), "mine")
    words = "`{'enable_thinking': False}`, for the teacher with `{'enable_thinking': True}`"
    assert f"- Chat template: with the arguments {words}.\n- Thoughts in the rows were removed.\n" in card
    assert "return_tensors=\"pt\", **{'enable_thinking': False}\n)" in card
    assert "max_tokens=64), chat_template_kwargs={'enable_thinking': False})" in card
    card = run_card(with_settings(facts, on, "train.method=sft"), "mine")
    assert "Chat template" not in card
    assert "chat_template_kwargs=" not in card
    adapter = dataclasses.replace(with_settings(facts, off, "lora.rank=5"), adapter=True)
    card = run_card(adapter, "mine", "owner/base")
    assert "\"mine\"), chat_template_kwargs={'enable_thinking': False},\n)" in card
    assert "return_tensors=\"pt\", **{'enable_thinking': False}\n)" in card


@pytest.mark.parametrize("method", MethodName.__args__)
def test_every_method_has_words(facts, method):
    card = run_card(with_settings(facts, f"train.method={method}", "data.general=mini:old"), "mine")
    assert ("Divergence:" in card) == (method in ("sdft", "reinvoke", "offline_kl"))
    assert ("Teacher:" in card) == (method in ("sdft", "offline", "offline_kl"))
    assert ("self-distillation" in ModelCard(card).data.tags) == (method == "sdft")


def test_adapters(facts):
    lora = with_settings(facts, "lora.rank=5", "lora.quantize=int8")
    merged = run_card(lora, "mine", "owner/base")
    assert "of the projections of all layers, on a base quantized to int8; here they are merged" in merged
    card = run_card(dataclasses.replace(lora, adapter=True), "mine", "owner/base")
    data = ModelCard(card).data
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    assert 'LLM("owner/base", enable_lora=True, max_lora_rank=8)' in card
    assert "merged" not in card


def test_no_directory_of_this_machine(facts, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    paths = (
        f"data.path={tmp_path}/rows.jsonl",
        f"eval.path={tmp_path}/gone/x.jsonl",
        "data.template=file:/a/t",
    )
    local = with_settings(facts, *paths)
    card = run_card(local, "mine")
    assert "/home/me" not in card
    assert str(tmp_path) not in card
    assert str(tmp_path.parent) not in card
    assert facts.config.model.path not in card
    assert "file:t\n" in card


def test_the_configuration_is_read_back(facts, tmp_path):
    """A template with a code fence does not end the block."""
    config = with_settings(facts, "data.template='```\n$question\n``` $demonstration'").config
    card = run_card(dataclasses.replace(facts, config=config), "mine")
    block = card.partition("````yaml\n")[2].partition("````\n")[0]
    (tmp_path / "config.yaml").write_text(block)
    back = load_config(tmp_path / "config.yaml")
    assert (back.data, back.train, back.optimizer) == (config.data, config.train, config.optimizer)
    assert yaml.safe_load(block)["model"]["path"] == "model"


def test_a_run_of_an_older_version_has_fewer_facts(facts):
    card = run_card(dataclasses.replace(facts, provenance={}), "mine")
    assert "Training rows: `mini:blax`." in card
    assert "| this model (step 6) | 0.500 | 0.625 | 0.015 |" in card
    assert ModelCard(card).data.datasets is None
