"""`sdft train`: its table, plot and paths, and the run of the baseline."""

import json

from runs import config_of, read
from sdft_jax.commands.train import baseline_config, plot_points, result_rows
from sdft_jax.training.loop import Run


def test_summary_has_rows_before_training_for_the_teacher_and_for_each_method(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert [row["model"] for row in summary["rows"]] == [
        "before",
        "before, with the demonstration",
        "after SDFT",
        "after SFT",
    ]
    before, teacher, sdft, sft = summary["rows"]
    assert (before["steps"], before["KL to base"]) == (0, 0.0)
    assert teacher.keys() == {"model", "new skill"}
    last = read(finished / "evaluations.jsonl")[-1]
    assert sdft == {
        "model": "after SDFT",
        "steps": 6,
        "new skill": last["accuracy"],
        "old skills": last["prior"],
        "KL to base": last["kl_to_base"],
    }
    assert sft["steps"] == 6
    assert "jax" in summary["hardware"]


def test_baseline_is_a_separate_run_on_the_same_data(finished):
    rows = read(finished / "sft" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert "cross_entropy" in rows[0]
    assert (finished / "sft" / "model" / "model.safetensors").is_file()


def test_plot_is_written(finished):
    assert (finished / "run.png").read_bytes().startswith(b"\x89PNG")


def test_baseline_differs_in_method_and_output_only(tmp_path):
    config = config_of("mini", tmp_path, "baseline=true", "optimizer.learning_rate=0.5")
    baseline = baseline_config(config)
    assert (baseline.train.method, baseline.output, baseline.baseline) == ("sft", f"{tmp_path}/sft", False)
    assert (baseline.optimizer, baseline.data, baseline.train.steps) == (
        config.optimizer,
        config.data,
        config.train.steps,
    )


def test_baseline_may_have_its_own_learning_rate(tmp_path):
    rates = ("optimizer.learning_rate=0.5", "baseline_learning_rate=0.25")
    assert baseline_config(config_of("mini", tmp_path, *rates)).optimizer.learning_rate == 0.25


def test_rows_and_points_without_prior_skills():
    evaluations = ({"step": 0, "accuracy": 0.1, "teacher": 0.9}, {"step": 5, "accuracy": 0.5})
    run = Run(None, None, 5, evaluations, None)
    assert plot_points({"sdft": run}) == [
        {"method": "SDFT", "step": 0, "new": 0.1},
        {"method": "base", "step": 0, "new": 0.1},
        {"method": "teacher", "step": 0, "new": 0.9},
        {"method": "SDFT", "step": 5, "new": 0.5},
    ]
    assert result_rows({"sdft": run})[-1] == {
        "model": "after SDFT",
        "steps": 5,
        "new skill": 0.5,
        "old skills": None,
        "KL to base": None,
    }


def test_no_rows_without_evaluations():
    assert result_rows({"sdft": Run(None, None, 5, (), None)}) == []
