"""Tests of `sdft lab real` on a random model with a tokenizer of bytes: trials, report, pictures, pages."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sdft_jax import cli
from sdft_jax.config.overrides import merge
from sdft_jax.models import Model, architecture_from_dict, save_pretrained
from sdft_jax.studies.lab.publish import BEGIN, END
from sdft_jax.studies.lab.real import matrix, report, study
from sdft_jax.studies.lab.real.run import run

LONG = {
    "data": {"max_prompt": 256, "max_teacher_prompt": 512, "prompt_buckets": [256], "teacher_buckets": [512]},
    "sampling": {"max_new_tokens": 64},
    "eval": {"batch_size": 4, "max_new_tokens": 4},
    "train": {"batch_size": 2},
    "lora": {"rank": 2},
}
"""Lengths in bytes."""
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a random model whose tokens are bytes."""
    import jax

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = TEMPLATE
    shape = dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        tie_word_embeddings=True,
        hidden_act="silu",
        eos_token_id=1,
        torch_dtype="float32",
    )
    random = Model(architecture_from_dict(shape))
    params = jax.tree.map(lambda p: p * 8.0 if np.ptp(p) else p, random.init(jax.random.key(0)))
    directory = tmp_path_factory.mktemp("model")
    save_pretrained(random, params, fast, directory)
    return directory


@pytest.fixture(scope="module")
def ran(model, tmp_path_factory, shared_compilations):
    """The findings of a whole study, its directory, and a directory with a published page."""
    output, target = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("page")
    (target / "REAL.md").write_text(f"Written by hand.\n{BEGIN}\nold\n{END}\nAfter.\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "SETTINGS", merge(study.SETTINGS, LONG))
        for task in ("rule", "tools"):  # facts have all methods
            patch.delitem(study.TASKS, task)
        patch.setattr(matrix, "RATES", {"sdft": (1e-3, 3e-3), "sft": (1e-3,), "cpt": (1e-3,)})
        for module in (matrix, report):
            patch.setattr(module, "SEARCH", {"fewer": ("facts", "sdft", {"data": {"limit": 4}})})
        findings = run(str(model), str(output), (0, 1), True, str(target))
        trials = sorted((output / "real-quick" / "trials").glob("*/result.json"))
        times = {path: path.stat().st_mtime_ns for path in trials}
        again = run(str(model), str(output), (0, 1), True, None)
        assert times == {path: path.stat().st_mtime_ns for path in trials}, "a finished trial ran again"
    return findings, again, output / "real-quick", target


def test_every_method_is_measured(ran):
    findings = ran[0]
    assert {task: set(methods) for task, methods in findings.methods.items()} == {
        "facts": {"sdft", "sft", "cpt"}
    }
    for task, methods in findings.methods.items():
        # the same parameters in two places of one program, which may round apart
        assert findings.base[task].kl_prior == pytest.approx(0, abs=1e-6)
        assert findings.base[task].perplexity > 1
        for (trained,) in methods.values():
            assert trained.kl_prior > 0
            assert trained.perplexity != findings.base[task].perplexity
            assert trained.seconds > 0
            assert trained.cpu_seconds > 0
    assert findings.search["fewer"].kl_new != findings.methods["facts"]["sdft"][0].kl_new


def test_a_second_run_reads_the_stored_trials(ran):
    findings, again, directory, _ = ran
    assert again == findings
    # base, SDFT at two rates, SFT, CPT, search
    assert len(list((directory / "trials").glob("*/result.json"))) == 6
    assert not list((directory / "trials").glob("*/run"))


def test_report_has_every_table_and_the_pictures(ran):
    _, _, directory, target = ran
    text = (directory / "REAL.md").read_text(encoding="utf-8")
    for line in (
        "### New facts",
        "### Search: facts",
        "| oracle: the context in the prompt |",
        "SDFT against CPT on general questions",
        "--quick",
    ):
        assert line in text
    published = (target / "REAL.md").read_text(encoding="utf-8")
    assert published.startswith("Written by hand.\n")
    assert published.endswith("\nAfter.\n")
    assert text.strip() in published
    for name in report.PICTURES:
        assert (target / name).read_bytes().startswith(b"\x89PNG")


def test_best_has_the_most_right_validation_answers_and_of_several_the_lowest_rate(ran):
    """The accuracy on the evaluation rows must not choose."""

    def result(rate, right, new):
        verdicts = {"question": [new], "prior": [True]}
        validation = [True] * right + [False] * (3 - right)
        return matrix.Scored(verdicts, (), 0.0, 0.0, 1.0, 1.0, validation=validation, rate=rate)

    results = [result(3e-4, 1, True), result(3e-3, 2, True), result(1e-3, 2, False)]
    assert matrix.best(results).rate == 1e-3
    assert matrix.best(results[:1]).rate == 3e-4
    sweep, methods = ran[0].sweep["facts"], ran[0].methods["facts"]
    assert [run.rate for run in sweep["sdft"]] == [1e-3, 3e-3]
    assert all(len(run.validation) == 4 for run in sweep["sdft"])  # eval.limit of --quick
    assert methods["sdft"] == [matrix.best(sweep["sdft"])]


def test_a_trial_is_its_rows_and_settings(ran, monkeypatch, tmp_path):
    own = matrix.Study("model", tmp_path)
    key = own.trial("rule", "sdft", 1e-3).key
    assert own.trial("rule", "sdft", 1e-3).key == key
    assert own.trial("rule", "sdft", 1e-3, 1).key != key
    assert own.trial("rule", "sdft", 1e-3, 0, {"divergence": {"alpha": 1.0}}).key != key
    monkeypatch.setattr(study.general, "TEXTS", ("Another text.",))
    assert own.trial("rule", "sdft", 1e-3).key != key
    settings = json.loads(json.dumps(own.trial("rule", "sft").settings))
    assert settings["config"]["eval"]["task"] == "contains"


def test_real_without_a_model_names_the_option(capsys, tmp_path):
    assert cli.main(["lab", "real", "--output", str(tmp_path)]) == 2
    assert "--model" in capsys.readouterr().err
    assert cli.main(["lab", "real", "--model", str(tmp_path / "none"), "--output", str(tmp_path)]) == 2
    assert "none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_real_runs_alone(capsys, tmp_path):
    assert cli.main(["lab", "real", "skill", "--output", str(tmp_path)]) == 2
    assert "runs alone" in capsys.readouterr().err
