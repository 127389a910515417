"""An evaluation that contains training prompts raises, with the number of prompts and the rows."""

import json

import numpy as np
import pytest

from runs import config_of, sequence_settings
from sdft_jax.config import method_named
from sdft_jax.continual.arms import make_plan
from sdft_jax.data.contamination import refuse_contamination
from sdft_jax.data.encoding import Encoded
from sdft_jax.errors import SdftError
from sdft_jax.mini.lists import Skill, demonstrations, heldout
from sdft_jax.reporting.reporter import SILENT
from sdft_jax.training.inputs import load_inputs

SKILL = Skill("drib", "ends", "digits")


def row(number, *prompt):
    empty = np.zeros(0, np.int32)
    return Encoded(np.asarray(prompt, np.int32), empty, empty, number)


def test_only_identical_prompts_are_contaminated():
    evaluated = [row(0, 1, 2), row(1, 1, 2, 3, 4), row(2, 3, 2, 1)]
    refuse_contamination({"train": [row(0, 1, 2, 3)]}, "test", evaluated)


def test_error_names_count_source_and_rows():
    evaluated = [row(0, 9), row(4, 1, 2), row(7, 3)]
    trained = {"a.jsonl": [row(0, 5)], "b.jsonl": [row(0, 3), row(1, 1, 2)]}
    with pytest.raises(SdftError, match=r"test: 2 of its 3 prompts are .* in b\.jsonl \(rows 4, 7 "):
        refuse_contamination(trained, "test", evaluated)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def contaminated(tmp_path):
    """Two files: 16 training rows, and 8 evaluation rows of which 3 are also training rows."""
    trained = demonstrations(SKILL, 16)
    train = write(tmp_path / "train.jsonl", trained)
    return train, write(tmp_path / "test.jsonl", heldout(SKILL, 5) + trained[4:7])


@pytest.mark.parametrize("option", ["eval.path", "eval.validation", "eval.prior"])
def test_each_evaluation_of_a_run_is_checked(option, contaminated, tiny_directory):
    train, test = contaminated

    def config(*overrides):
        return config_of(tiny_directory, "unused", f"data.path={train}", f"{option}={test}", *overrides)

    with pytest.raises(
        SdftError, match=r"test\.jsonl: 3 of its 8 prompts are also training prompts in .*train\.jsonl"
    ):
        load_inputs(config())
    assert load_inputs(config("eval.overlap=allow"))
    assert load_inputs(config("train.method=oracle"))  # the oracle is not trained


def test_general_prompts_are_training_prompts(contaminated, tiny_directory):
    general, test = contaminated
    settings = (tiny_directory, "unused", f"data.general={general}", f"eval.prior={test}")
    assert load_inputs(config_of(*settings))  # SDFT does not read data.general
    with pytest.raises(SdftError, match="3 of its 8 prompts"):
        load_inputs(config_of(*settings, "train.method=reinvoke"))


@pytest.mark.parametrize("kind", ["another stage", "a suite"])
def test_stage_must_not_train_on_the_evaluation_prompts_of(kind, tiny_directory, tmp_path):
    settings = sequence_settings(tmp_path)
    trained = (tmp_path / "two-data.jsonl").read_text().splitlines()
    if kind == "another stage":
        with (tmp_path / "one-test.jsonl").open("a") as file:
            file.write(trained[0] + "\n")
        evaluation = "one-test"
    else:
        (tmp_path / "more.jsonl").write_text(trained[0] + "\n")
        suites = json.dumps([{"name": "more", "path": str(tmp_path / "more.jsonl")}])
        settings, evaluation = (*settings, f"continual.suites={suites}"), "more"
    config = config_of(tiny_directory, tmp_path / "out", *settings, "eval.limit=null")
    match = rf"{evaluation}\.jsonl: 1 of its \d+ prompts.*two-data\.jsonl"
    with pytest.raises(SdftError, match=match):
        make_plan(config, [method_named("sdft")], SILENT)
