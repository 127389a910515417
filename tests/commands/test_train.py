"""A run leaves a summary, a plot and its baseline beside it, and says so."""

import json

from runs import config_of, read
from sdft_jax.commands import train
from sdft_jax.training.loop import Run


def test_summary_has_a_row_before_one_for_the_teacher_and_one_for_each_method(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert [row["model"] for row in summary["rows"]] == [
        "before",
        "before, shown the demonstration",
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


def test_the_baseline_is_a_run_of_its_own_on_the_same_data(finished):
    rows = read(finished / "sft" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert "cross_entropy" in rows[0]
    assert (finished / "sft" / "model" / "model.safetensors").is_file()


def test_there_is_a_plot(finished):
    assert (finished / "run.png").read_bytes().startswith(b"\x89PNG")


def test_the_baseline_differs_in_method_and_place_only(tmp_path):
    config = config_of("mini", tmp_path, "baseline=true", "optimizer.learning_rate=0.5")
    beside = train._baseline(config)
    assert (beside.train.method, beside.output, beside.baseline) == ("sft", f"{tmp_path}/sft", False)
    assert (beside.optimizer, beside.data, beside.train.steps) == (
        config.optimizer,
        config.data,
        config.train.steps,
    )


def test_points_of_the_plot_with_one_skill_missing():
    rows = ({"step": 0, "accuracy": 0.1, "teacher": 0.9}, {"step": 5, "accuracy": 0.5})
    run = Run(None, None, 5, rows, None)
    assert train._points({"sdft": run}) == [
        {"method": "SDFT", "step": 0, "new": 0.1},
        {"method": "base", "step": 0, "new": 0.1},
        {"method": "teacher", "step": 0, "new": 0.9},
        {"method": "SDFT", "step": 5, "new": 0.5},
    ]
    assert train._table({"sdft": run})[-1] == {
        "model": "after SDFT",
        "steps": 5,
        "new skill": 0.5,
        "old skills": None,
        "KL to base": None,
    }


def test_without_evaluations_the_table_is_empty():
    assert train._table({"sdft": Run(None, None, 5, (), None)}) == []
