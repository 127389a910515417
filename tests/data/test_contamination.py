"""An evaluation that asks what training asks is refused, with the count and the rows."""

import json

import numpy as np
import pytest

from runs import config_of, sequence_settings
from sdft_jax.continual.arms import make_plan
from sdft_jax.data.contamination import refuse_overlap
from sdft_jax.data.encoding import Encoded
from sdft_jax.errors import SdftError
from sdft_jax.mini.lists import Skill, demonstrations, heldout
from sdft_jax.training.inputs import prepare

SKILL = Skill("drib", "ends", "digits")


def row(number, *prompt):
    nothing = np.zeros(0, np.int32)
    return Encoded(np.asarray(prompt, np.int32), nothing, nothing, number)


def test_prompts_are_compared_whole():
    refuse_overlap({"train": [row(0, 1, 2, 3)]}, "test", [row(0, 1, 2), row(1, 1, 2, 3, 4), row(2, 3, 2, 1)])


def test_the_message_counts_and_names_source_and_rows():
    examined = [row(0, 9), row(4, 1, 2), row(7, 3)]
    trained = {"a.jsonl": [row(0, 5)], "b.jsonl": [row(0, 3), row(1, 1, 2)]}
    with pytest.raises(SdftError, match=r"test: 2 of its 3 prompts are .* in b\.jsonl \(rows 4, 7"):
        refuse_overlap(trained, "test", examined)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def twice(tmp_path):
    """Files: 16 rows to train on, and 8 to examine of which 3 are trained on too."""
    trained = demonstrations(SKILL, 16)
    return write(tmp_path / "train.jsonl", trained), write(
        tmp_path / "test.jsonl", heldout(SKILL, 5) + trained[4:7]
    )


@pytest.mark.parametrize("option", ["eval.path", "eval.validation", "eval.prior"])
def test_every_evaluation_of_a_run_is_looked_at(option, twice, tiny_directory):
    train, test = twice

    def config(*overrides):
        return config_of(tiny_directory, "unused", f"data.path={train}", f"{option}={test}", *overrides)

    with pytest.raises(SdftError, match=r"test\.jsonl: 3 of its 8 prompts are also trained on.*train\.jsonl"):
        prepare(config(), active=False)
    assert prepare(config("eval.overlap=allow"), active=False)
    assert prepare(config("train.method=oracle"), active=False)  # it is not trained


def test_prompts_of_general_use_are_trained_on_too(twice, tiny_directory):
    general, test = twice
    settings = (tiny_directory, "unused", f"data.general={general}", f"eval.prior={test}")
    assert prepare(config_of(*settings), active=False)  # SDFT does not read them
    with pytest.raises(SdftError, match="3 of its 8 prompts"):
        prepare(config_of(*settings, "train.method=reinvoke"), active=False)


@pytest.mark.parametrize("kind", ["another stage", "a suite"])
def test_no_stage_trains_on_what_is_examined_elsewhere(kind, tiny_directory, tmp_path):
    settings = sequence_settings(tmp_path)
    trained = (tmp_path / "two-data.jsonl").read_text().splitlines()
    if kind == "another stage":
        with (tmp_path / "one-test.jsonl").open("a") as file:
            file.write(trained[0] + "\n")
        found = "one-test"
    else:
        (tmp_path / "more.jsonl").write_text(trained[0] + "\n")
        suites = json.dumps([{"name": "more", "path": str(tmp_path / "more.jsonl")}])
        settings, found = (*settings, f"continual.suites={suites}"), "more"
    config = config_of(tiny_directory, tmp_path / "out", *settings, "eval.limit=null")
    match = rf"{found}\.jsonl: 1 of its \d+ prompts.*two-data\.jsonl"
    with pytest.raises(SdftError, match=match):
        make_plan(config, ["sdft"], active=False)
