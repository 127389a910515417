"""Tests that the reports of all experiments follow their numbers, which are synthetic (synthetic.py)."""

import inspect
import json
import re

import pytest

from sdft_jax.mini import storms
from sdft_jax.studies.lab.experiments import EXPERIMENTS, experiment
from sdft_jax.studies.lab.experiments.adapters import _answer, _share_when_learned
from sdft_jax.studies.lab.experiments.knowledge import _lenient
from sdft_jax.studies.lab.experiments.reasoning import _idle
from sdft_jax.studies.lab.experiments.sampling import _unsure
from sdft_jax.studies.lab.lab import SWEEP_SEED, Comparison, Lab, Outcome, Swept
from sdft_jax.studies.lab.reports import Report, markdown, write
from sdft_jax.studies.lab.worlds import CHAINS
from synthetic import fake_runs

ALL = list(EXPERIMENTS)


@pytest.fixture
def reported(monkeypatch, tmp_path):
    def run(name, sdft_wins=True, **lab):
        fake_runs(monkeypatch, sdft_wins)
        return experiment(name)(Lab(tmp_path, **lab))

    return run


def verdicts(report):
    return {check.claim: check.verdict for check in report.checks}


@pytest.mark.parametrize("name", ALL)
def test_every_name_has_a_function(name):
    function = experiment(name)
    assert list(inspect.signature(function).parameters) == ["lab"]
    assert inspect.getdoc(function)
    assert function.__module__.endswith(f".{EXPERIMENTS[name][0]}")


@pytest.mark.parametrize("name", ALL)
def test_every_report_is_written(name, reported, tmp_path):
    report = reported(name)
    assert isinstance(report, Report)
    assert (report.name, bool(report.checks)) == (name, True)
    path = write(report, tmp_path, "Measured here.")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / f"{name}.json").read_text())["verdict"] == report.verdict
    lines = path.read_text().splitlines()
    assert lines[0] == f"## {report.title}"
    for _, block in table_blocks(lines):
        assert len({line.count("|") for line in block}) == 1, block
    assert re.search(r"\d", path.read_text().split("![")[0])


def table_blocks(lines):
    """Return (start, lines) of each table."""
    blocks, start = [], None
    for i, line in enumerate([*lines, ""]):
        if line.startswith("|") and start is None:
            start = i
        elif not line.startswith("|") and start is not None:
            blocks.append((start, lines[start:i]))
            start = None
    return blocks


@pytest.mark.parametrize("name", ALL)
def test_quick_report_has_no_verdict_over_seeds(name, reported):
    report = reported(name, seeds=(0,), quick=True)
    text = markdown(report, "")
    for check in report.checks:
        if check.estimate.half is None:
            assert check.verdict == "cannot be told"
    # Counts and intervals over test items need no seeds.
    with_interval = [check.claim for check in report.checks if check.estimate.half is not None]
    assert with_interval == {
        "cost": ["SDFT needs at most 3 times SFT's FLOPs"],
        "optimality": ["the teacher's accuracy above the base's, interval over items"],
    }.get(name, [])
    assert f"**{report.verdict}**" in text


def test_verdict_on_a_skill_depends_on_the_winner(reported):
    assert reported("skill").verdict == "agrees"
    lost = reported("skill", sdft_wins=False)
    assert lost.verdict == "differs"
    assert set(verdicts(lost).values()) == {"differs"}


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("sequential", "SDFT above SFT in mean accuracy after the last stage"),
        ("knowledge", "SDFT above SFT on strict questions"),
        ("reasoning", "SDFT above SFT on prior chains"),
        ("on-policy", "SDFT above offline KL on the new skill"),
        ("scale", "SDFT above SFT on the new skill at the largest base"),
        ("adapters", "rank 2: SDFT above SFT on prior skills"),
        ("pass@k", "SDFT above SFT at k=1"),
        ("optimality", "the SDFT model nearer to the base than the SFT model"),
    ],
)
def test_verdicts_on_claims_depend_on_the_winner(name, claim, reported):
    assert verdicts(reported(name))[claim] == "agrees"
    assert verdicts(reported(name, sdft_wins=False))[claim] == "differs"


def cell(report, label, column):
    (row,) = [row for row in report.rows if row[""] == label]
    return row[column]


def test_sequence_reports_the_last_stage_and_the_backward_transfer(reported):
    report = reported("sequential")
    assert [row[""] for row in report.rows] == ["base", "SDFT", "SFT", "joint SFT"]
    # SFT learns each skill to about 0.8 and retains 0.3 of it after every later stage.
    assert float(cell(report, "SFT", "glov").split()[0]) == pytest.approx(80, abs=0.5)
    assert float(cell(report, "SFT", "drib").split()[0]) == pytest.approx(24, abs=0.5)
    assert float(cell(report, "SFT", "blax").split()[0]) == pytest.approx(7.2, abs=0.5)
    transfer = ((24 - 80) + (7.2 - 80)) / 2
    assert float(cell(report, "SFT", "backward transfer").split()[0]) == pytest.approx(transfer, abs=0.5)
    assert "backward transfer" not in report.rows[-1]


def test_lenient_score_requires_one_right_detail():
    rows = storms.heldout("direct") + storms.heldout("pair")
    assert _lenient([row["answer"] for row in rows]) == 1
    assert _lenient(["nothing"] * len(rows)) == 0
    halves = [row["answer"].split(" , ")[0] if row["kind"] == "pair" else "nothing" for row in rows]
    assert _lenient(halves) == pytest.approx(len(storms.heldout("pair")) / len(rows))


def test_knowledge_has_three_scores_and_an_oracle(reported):
    report = reported("knowledge")
    strict, lenient = (
        float(cell(report, "SDFT", f"{name} (%)").split()[0]) for name in ("strict", "lenient")
    )
    assert strict == pytest.approx(90, abs=0.6)
    assert lenient > strict
    assert cell(report, "oracle: article and answer in context", "out of distribution (%)") == "95.0"
    assert cell(report, "base", "prior (%)") == "99.0"


def test_artefacts_report_the_share_of_citations(reported):
    report = reported("artefacts")
    assert cell(report, "base", "cites a text (%)") == "0.0"
    shares = [
        float(cell(report, name, "cites a text (%)").split()[0]) for name in ("SDFT", "skip 1", "skip 3")
    ]
    assert shares == pytest.approx([40, 20, 10], abs=0.6)
    assert report.verdict == "agrees"


def test_cost_is_relative_to_sft(reported):
    report = reported("cost")
    assert [row["FLOPs, of SFT's"] for row in report.rows[:3]] == ["1.00", "1.00", "2.40"]
    assert [check.verdict for check in report.checks] == ["agrees", "cannot be told"]


def test_only_claims_of_the_paper_count(reported):
    claimed = {
        name: [check.claim for check in reported(name).checks if check.claimed]
        for name in ("divergence", "context", "on-policy")
    }
    assert claimed == {
        "divergence": ["full vocabulary above the sampled token on the new skill"],
        "context": [
            "article and answer above the article alone on strict questions",
            "article and answer above the answer alone on strict questions",
        ],
        "on-policy": [
            "SDFT above offline KL on the new skill",
            "SDFT above SFT on teacher samples on the new skill",
        ],
    }


def swept(label, rates):
    return tuple(Swept(label, rate, new, 1.0, chosen) for rate, new, chosen in rates)


def test_note_when_sft_learns_at_no_rate():
    def notes(rates):
        (chosen,) = [rate for rate, _, is_chosen in rates if is_chosen]
        return _idle(Comparison(CHAINS, {}, {"SFT": chosen}, swept("SFT", rates), {}), before=0.43)

    assert (
        "below the base model's accuracy at every rate" in notes([(1e-5, 0.41, True), (3e-5, 0.1, False)])[0]
    )
    assert notes([(1e-5, 0.41, False), (3e-5, 0.6, True)]) == []  # one rate learns
    assert notes([(1e-5, 0.1, False), (3e-5, 0.41, True)]) == []  # the chosen rate is not the lowest


def test_note_when_greedy_answers_are_right_and_samples_are_wrong():
    seeds = [{"measured": [{"blax": {"accuracy": x}}]} for x in (0.98, 1.0)]
    (note,) = _unsure(seeds, "blax", 0.001)
    assert "right in 99% of its greedy answers but only in 0.1% of its samples" in note
    assert _unsure(seeds, "blax", 0.9) == []


def test_longer_runs_use_the_rate_of_the_shorter_run(reported):
    rows = {row[""]: row for row in reported("teacher").rows}
    for label in ("EMA 0.02", "frozen", "live"):
        assert rows[f"{label}, 5x steps"]["learning rate"] == rows[label]["learning rate"]


def test_adapters_have_alpha_twice_the_rank_and_only_reported_runs_have_checkpoints(monkeypatch, tmp_path):
    requested = fake_runs(monkeypatch)
    experiment("adapters")(Lab(tmp_path))
    arms = [trial.settings for trial in requested if trial.work == "arm"]
    assert {(one["config"].get("lora", {}).get("rank", 0), one["method"]) for one in arms} == {
        (rank, method) for rank in (0, 2, 8, 64) for method in ("sdft", "sft")
    }
    for one in arms:
        lora = one["config"].get("lora", {"rank": 0, "alpha": 0})
        assert lora["alpha"] == 2 * lora["rank"]
        watched = one["config"]["train"].get("eval_every", 0) > 0
        assert watched == (one["seed"] != SWEEP_SEED)


@pytest.mark.parametrize(
    ("seeds", "sdft_wins", "told"),
    [((0, 1, 2), True, "Yes"), ((0, 1, 2), False, "No"), ((0,), True, "Cannot be told")],
)
def test_adapters_answer_the_question(seeds, sdft_wins, told, reported):
    answer = reported("adapters", sdft_wins, seeds=seeds).notes[0]
    assert f"? {told}, at every rank. " in answer
    assert re.findall(r"([+-])\d+\.\d \(rank \d+\)", answer) == ["+" if sdft_wins else "-"] * 6


def test_adapters_answer_for_each_rank_if_the_ranks_differ():
    def outcomes(*pairs):
        return {"blax": tuple(Outcome(new, prior, 0, 0, 0, {}) for new, prior in pairs)}

    sdft = {
        f"SDFT, {capacity}": outcomes(*[(0.9, 0.9)] * 3)
        for capacity in ("full", "rank 2", "rank 8", "rank 64")
    }
    sft = {
        "SFT, full": outcomes(*[(0.9, 0.5)] * 3),
        "SFT, rank 2": outcomes(*[(0.9, 0.5)] * 3),
        "SFT, rank 8": outcomes(*[(1.0, 0.5)] * 3),  # learns more than SDFT
        "SFT, rank 64": outcomes((0.9, 0.2), (0.9, 0.95), (0.9, 0.95)),
    }
    answer = _answer(Comparison(CHAINS, {}, {}, (), sdft | sft))
    assert "? Rank 2: yes; rank 8: no; rank 64: cannot be told. " in answer
    assert "prior skills, in points: +40.0 (full), +40.0 (rank 2)" in answer


def test_prior_skills_when_the_new_skill_is_learned():
    def run(*points):
        return {"curve": [{"step": i, "tasks": {"blax": a}, "prior": b} for i, (a, b) in enumerate(points)]}

    early, late = run((0, 1), (0.95, 0.8), (0.5, 0.1)), run((0, 1), (0.89, 0.9), (0.9, 0.6), (1.0, 0.7))
    assert _share_when_learned([early, late]).split(" ± ")[0] == "70.0"
    assert _share_when_learned([early, run((0, 1), (0.89, 1))]) == "–"
