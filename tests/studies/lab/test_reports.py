"""Tests of verdicts, with intervals computed by hand, and of the Markdown and JSON reports."""

import json

import pytest

from sdft_jax.reporting.statistics import Estimate, difference_interval, mean_interval
from sdft_jax.studies.lab.lab import Comparison, Lab, Outcome, Swept, Variant, compare
from sdft_jax.studies.lab.reports import COLUMNS, Check, Report, exceeds, markdown, share, table, write
from sdft_jax.studies.lab.worlds import lists
from synthetic import fake_runs


def report(*checks, rows=({"": "base", "new (%)": "5.0"},), sweep=(), notes=()):
    def draw(path, caption):
        path.write_bytes(caption.encode())

    return Report("name", "A title", "Its result (Table 1).", checks, rows, draw, sweep, notes)


def check(*estimate, **changes):
    return Check("claim", Estimate(*estimate), **changes)


# Student's t with 2 degrees of freedom is 4.303 at 95 %: the half-width of 3 differences is 2.484 deviations.
@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([0.7, 0.8, 0.9], [0.2, 0.3, 0.4], "agrees"),  # always 0.5
        ([0.7, 0.8, 0.9], [0.6, 0.6, 0.6], "cannot be told"),  # 0.2 +- 0.248
        ([0.8, 0.9, 1.0], [0.6, 0.6, 0.6], "agrees"),  # 0.3 +- 0.248
        ([0.2, 0.3, 0.4], [0.6, 0.6, 0.6], "differs"),  # -0.3 +- 0.248
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "cannot be told"),  # all 0
        ([0.9], [0.1], "cannot be told"),  # one seed
        ([0.1 + 0.2] * 3, [0.3] * 3, "cannot be told"),  # rounding: 0.1 + 0.2 > 0.3
        ([0.3] * 3, [0.1 + 0.2] * 3, "cannot be told"),
    ],
)
def test_verdicts(a, b, verdict):
    assert Check("claim", difference_interval(a, b)).verdict == verdict


def test_check_as_text():
    assert str(check(0.3, 0.248)) == "claim: +30.0 points (± 24.8): **agrees**"
    assert str(check(-0.3, 0.1)) == "claim: -30.0 points (± 10.0): **differs**"
    assert str(check(0.3, None)) == "claim: +30.0 points (one run): **cannot be told**"
    assert str(check(0.3, 0.1, unit="nats", scale=1.0)) == "claim: +0.30 nats (± 0.10): **agrees**"
    assert (
        str(check(0.3, 0.1, claimed=False))
        == "claim: +30.0 points (± 10.0): **holds**, not part of the verdict"
    )


YES, NO, OPEN = check(1, 0.5), check(-1, 0.5), check(1, 2)


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([YES, YES], "agrees"),
        ([YES, OPEN], "cannot be told"),
        ([YES, OPEN, NO], "differs"),
        ([], "cannot be told"),
        ([YES, check(-1, 0.5, claimed=False)], "agrees"),
        ([check(1, 0.5, claimed=False)], "cannot be told"),
    ],
)
def test_verdict_of_a_report(checks, verdict):
    assert report(*checks).verdict == verdict


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_has_all_parts_of_the_report():
    rows = [{"": "base", "new": "1"}, {"": "SDFT", "rate": "3e-5", "new": "2"}]
    swept = [Swept("SDFT", 1e-5, 0.5, 0.9, False), Swept("SDFT", 3e-5, 0.805, 0.95, True)]
    text = markdown(
        report(YES, check(-1, 0.5, paper="70 against 66"), rows=rows, sweep=swept, notes=["A note."]), "C."
    )
    lines = text.splitlines()
    assert lines[0] == "## A title"
    assert lines[2] == "`sdft lab name`: **differs**. C."
    assert "The paper: Its result (Table 1)." in lines
    tables = [cells(line) for line in lines if line.startswith("|")]
    assert tables == [
        ["", "new", "rate"],
        ["---"] * 3,
        ["base", "1", "–"],
        ["SDFT", "2", "3e-5"],
        ["", "1e-5", "3e-5"],
        ["---"] * 3,
        ["SDFT", "50.0 / 90.0", "**80.5 / 95.0**"],
    ]
    assert "- claim: -100.0 points (± 50.0): **differs** (paper: 70 against 66)" in lines
    assert "A note." in lines
    assert "![A title](name.png)" in lines
    assert text.count("<details>") == text.count("</details>") == 1
    assert "<details>" not in markdown(report(YES), "C.")


def test_report_is_written_as_markdown_json_and_picture(tmp_path):
    swept = [Swept("SDFT", 1e-5, 0.5, 0.9, True)]
    full = report(YES, check(0.3, None), sweep=swept, notes=["ü"])
    path = write(full, tmp_path / "new", "Caption.")
    assert path == tmp_path / "new" / "name.md"
    assert path.read_text(encoding="utf-8") == markdown(full, "Caption.")
    assert (tmp_path / "new" / "name.png").read_bytes() == b"Caption."
    content = json.loads((tmp_path / "new" / "name.json").read_text(encoding="utf-8"))
    assert (content["verdict"], content["measured on"], content["notes"]) == (
        "cannot be told",
        "Caption.",
        ["ü"],
    )
    assert content["rows"] == [{"": "base", "new (%)": "5.0"}]
    assert [one["verdict"] for one in content["checks"]] == ["agrees", "cannot be told"]
    assert content["checks"][1]["estimate"] == {"mean": 0.3, "half": None}
    assert content["sweep"] == [{"label": "SDFT", "rate": 1e-5, "new": 0.5, "prior": 0.9, "chosen": True}]


def test_table_of_a_comparison(monkeypatch, tmp_path):
    fake_runs(monkeypatch)
    comparison = compare(Lab(tmp_path), lists(), [Variant("SDFT"), Variant("SFT", "sft")])
    rows = table(comparison, COLUMNS)
    assert [row[""] for row in rows] == ["base", "base, shown the demonstration", "SDFT", "SFT"]
    # The rows have the same order of keys, which is the order of the columns.
    assert list(rows[0]) == list(rows[2]) == ["", "learning rate", *COLUMNS.values()]
    assert rows[0]["prior (%)"] == "99.0"
    assert rows[1].keys() <= rows[0].keys()
    assert rows[1]["new (%)"] == "98.0"
    assert rows[2]["learning rate"] == "3e-5"
    new = mean_interval([x.new for x in comparison.outcomes["SDFT"]["blax"]])
    assert rows[2]["new (%)"] == f"{100 * new.mean:.1f} ± {100 * new.half:.1f}"
    assert rows[2]["tokens"] == "11.4 ± 0.0"


def test_zero_has_no_sign():
    assert share(mean_interval([-1e-6])) == "0.0"
    assert share(mean_interval([-1e-2])) == "-1.0"


def test_exceeds_pairs_seeds():
    def outcomes(*values):
        return {"blax": tuple(Outcome(value, 0, 0, 0, 0, {}) for value in values)}

    comparison = Comparison(lists(), {}, {}, (), {"a": outcomes(0.2, 0.5, 0.8), "b": outcomes(0.1, 0.4, 0.7)})
    assert exceeds(comparison, "new", "a", "b", "claim").estimate == pytest.approx((0.1, 0.0), abs=1e-12)
    assert exceeds(comparison, "new", "b", "a", "claim").verdict == "differs"


def test_markdown_wraps_paragraphs_and_starts_no_line_with_a_mark():
    marks = " ".join(f"word{i} {'+-|'[i % 3]}" for i in range(60))
    text = markdown(report(check(0.3, 0.1, paper=marks), notes=[marks]), "C.")
    assert max(map(len, text.splitlines())) <= 120
    wrapped = text.partition("![")[2].splitlines()[2:]
    assert len([line for line in wrapped if line]) > 1
    assert not [line for line in wrapped if line.startswith(("+", "-", "|"))]
    assert " ".join(wrapped).strip() == marks
    assert " ".join(line.strip() for line in text.splitlines()).count(marks) == 2


def test_share():
    assert share(Estimate(0.123, None)) == "12.3"
    assert share(Estimate(1.0, 0.0123)) == "100.0 ± 1.2"
