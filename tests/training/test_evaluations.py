"""The measurements of an evaluation within a run, and the rows and the context of each."""

import dataclasses

import jax
import pytest

from runs import config_of
from sdft_jax.evaluation.scoring import Evaluation, Fault
from sdft_jax.models import load_model
from sdft_jax.models.lora import base_params
from sdft_jax.reporting.reporter import SILENT
from sdft_jax.training import evaluations
from sdft_jax.training.evaluations import evaluate_run, load_reference
from sdft_jax.training.inputs import load_inputs
from tiny import adapted


@pytest.fixture(scope="module")
def setup(tiny_directory):
    """(configuration, inputs, speaker) of a run with three sets of evaluation rows."""
    config = config_of(tiny_directory, "unused", "eval.validation=mini:blax:validation", "eval.limit=4")
    inputs = load_inputs(config)
    return config, inputs, inputs.speaker(*load_model(tiny_directory))


@pytest.fixture
def calls(monkeypatch):
    """(rows, with the demonstration, with a base) of each call of `evaluate`, which is replaced.

    The accuracy of the n-th call is n / 10, the mean length n tokens and the distance n / 100 nats.
    """
    calls = []

    def evaluate(speaker, rows, config, *, teacher, base, track):
        calls.append((rows, teacher, base is not None))
        number = len(calls)
        verdicts = (True,) * number + (False,) * (10 - number)
        return Evaluation(verdicts, ("",) * 10, (number,) * 10, number / 100 if base else None)

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    return calls


def test_before_training_the_teacher_is_evaluated_and_no_distance_is_measured(setup, calls):
    config, inputs, speaker = setup
    row = evaluate_run(speaker, config, inputs, inputs.directory, before=True)
    assert row == {"accuracy": 0.1, "length": 1.0, "teacher": 0.2, "validation": 0.3, "prior": 0.4}
    assert calls == [
        (inputs.new, False, False),
        (inputs.new, True, False),
        (inputs.validation, False, False),
        (inputs.prior, False, False),
    ]


def test_during_training_distances_are_measured(setup, calls):
    config, inputs, speaker = setup
    row = evaluate_run(speaker, config, inputs, inputs.directory, before=False)
    assert row == {
        "distance": 0.0,
        "accuracy": 0.1,
        "length": 1.0,
        "kl_to_base_new": 0.01,
        "validation": 0.2,
        "prior": 0.3,
        "kl_to_base": 0.03,
    }
    assert calls == [
        (inputs.new, False, True),
        (inputs.validation, False, False),
        (inputs.prior, False, True),
    ]


def test_distances_from_another_base_are_measured_from_the_start(setup, calls, half_directory):
    config, inputs, speaker = setup
    row = evaluate_run(speaker, config, inputs, str(half_directory), before=True)
    assert row["distance"] > 0
    assert row.keys() >= {"kl_to_base", "kl_to_base_new", "teacher"}


def test_the_reference_of_adapters_is_their_own_base(setup):
    """The KL to base reads the same arrays as the model, and no copy of them."""
    config, inputs, _ = setup
    speaker = inputs.speaker(*adapted(*load_model(inputs.directory)))
    reference = load_reference(speaker, config, inputs.directory, inputs.directory)
    assert jax.tree.structure(reference) == jax.tree.structure(base_params(speaker.params))
    own = {id(x) for x in jax.tree.leaves(speaker.params)}
    assert all(id(x) in own for x in jax.tree.leaves(reference))


def test_the_oracle_has_the_demonstration_in_context_except_on_prior_skills(setup, calls):
    config, inputs, speaker = setup
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, method="oracle"))
    evaluate_run(speaker, config, inputs, inputs.directory, before=True)
    context = {id(rows): teacher for rows, teacher, _ in calls}
    assert context[id(inputs.new)] is context[id(inputs.validation)] is True
    assert context[id(inputs.prior)] is False, "prior skills have no demonstrations"


def test_without_rows_only_the_distance_of_the_weights_is_measured(setup, calls, half_directory):
    config, inputs, speaker = setup
    inputs = dataclasses.replace(inputs, new=None, validation=None, prior=None)
    assert evaluate_run(speaker, config, inputs, inputs.directory, before=True) == {}
    assert evaluate_run(speaker, config, inputs, str(half_directory), before=False).keys() == {"distance"}
    assert calls == []


def test_faults_of_the_scorer_are_counted_and_told_once(setup, calls, monkeypatch):
    config, inputs, speaker = setup
    measured, lines = evaluations.evaluate, []

    def evaluate(*arguments, **options):
        fault = Fault(1, f"row {len(calls)}", "no")
        return dataclasses.replace(measured(*arguments, **options), faults=(fault,))

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    monkeypatch.setattr(type(SILENT), "print", lambda self, *sentences: lines.extend(sentences))
    row = evaluate_run(speaker, config, inputs, inputs.directory, before=True, reporter=SILENT)
    assert row["scorer_faults"] == len(calls) == 4
    assert lines == [
        "the scorer of eval.task=mini failed on 4 answers, which count as wrong: row 0 (no); row 1 (no); "
        "row 2 (no); and 1 more."
    ]
