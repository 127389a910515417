"""What an experiment says: a table, a picture, and for each of the paper's claims whether it is seen here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sdft_jax.continual.stages import scientific
from sdft_jax.reporting.charts import Bar, Line
from sdft_jax.reporting.statistics import Estimate, difference_interval, mean_interval
from sdft_jax.reporting.tables import markdown_table
from sdft_jax.studies.lab.lab import Comparison, Swept

Verdict = Literal["agrees", "differs", "cannot be told"]
Row = Mapping[str, Any]
_ROUNDING = 1e-9
"""Means of the same accuracies in another order may differ by so much."""
_OURS = {"agrees": "holds", "differs": "does not hold", "cannot be told": "cannot be told"}
"""Verdicts in words where the paper claims nothing that could agree or differ."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A difference that should be positive, in the unit of `estimate`: a claim of the paper's, or our own."""

    claim: str
    estimate: Estimate
    paper: str = ""
    """What the paper found, in its own numbers."""
    unit: str = "points"
    scale: float = 100.0
    """Factor from the estimate to the unit."""
    claimed: bool = True
    """Whether the paper says so; the experiment's verdict goes by these alone."""

    @property
    def verdict(self) -> Verdict:
        """`agrees` where the interval lies above 0, `differs` where below; neither for one run or all 0."""
        mean, half = self.estimate
        if half is None:
            return "cannot be told"
        if mean - half > _ROUNDING:
            return "agrees"
        return "differs" if mean + half < -_ROUNDING else "cannot be told"

    def __str__(self) -> str:
        """The claim with its number and verdict."""
        mean, half = self.estimate
        digits = 1 if self.scale == 100 else 2
        interval = "one run" if half is None else f"± {self.scale * half:.{digits}f}"
        found = f"{self.claim}: {self.scale * mean:+.{digits}f} {self.unit} ({interval})"
        if self.claimed:
            return f"{found}: **{self.verdict}**"
        return f"{found}: **{_OURS[self.verdict]}**, no part of the verdict"


@dataclasses.dataclass(frozen=True)
class Report:
    """One experiment."""

    name: str
    title: str
    paper: str
    """What the paper found, with its place there."""
    checks: Sequence[Check]
    rows: Sequence[Row]
    draw: Callable[[Path, str], None]
    """(file to write, caption) draws the picture."""
    sweep: Sequence[Swept] = ()
    notes: Sequence[str] = ()
    """What to know when reading the table, one sentence or paragraph each."""

    @property
    def verdict(self) -> Verdict:
        """All claims of the paper's hold: agrees; one does not: differs; else it cannot be told."""
        found = [check.verdict for check in self.checks if check.claimed]
        if "differs" in found:
            return "differs"
        return "agrees" if found and set(found) == {"agrees"} else "cannot be told"


def exceeds(
    comparison: Comparison,
    field: str,
    winner: str,
    loser: str,
    claim: str,
    paper: str = "",
    claimed: bool = True,
) -> Check:
    """That one variant has a higher accuracy (`field` new or prior) than another, paired by seed."""
    values = comparison.values(winner, field), comparison.values(loser, field)
    return Check(claim, difference_interval(*values), paper, claimed=claimed)


def table(
    comparison: Comparison, columns: Mapping[str, str], teacher: str | None = "base, shown the demonstration"
) -> list[Row]:
    """A row for the base model, its teacher and each variant; `columns` are field -> heading."""
    before = {field: 0.0 if field == "kl" else comparison.before(field) for field in columns}
    rows: list[Row] = [
        {"": "base", RATE: "–"}
        | {title: _number(before[field], None, field) for field, title in columns.items()}
    ]
    if teacher and "teacher" in comparison.base:
        told = [field for field in columns if field in ("new", "length", "kl_new")]
        rows.append(
            {"": teacher}
            | {columns[field]: _number(comparison.before(field, "teacher"), None, field) for field in told}
        )
    for label in comparison.outcomes:
        cells = {
            title: _number(*comparison.estimate(label, field), field) for field, title in columns.items()
        }
        rows.append({"": label, RATE: scientific(comparison.rates[label])} | cells)
    return rows


COLUMNS = {
    "new": "new (%)",
    "prior": "prior (%)",
    "kl": "KL prior",
    "kl_new": "KL new",
    "length": "tokens",
}
"""What most tables show: accuracy on the new skill and on prior ones, KL(model || base) in nats per token on
the model's own answers to prior and to new prompts, tokens of an answer to the new skill."""
RATE = "learning rate"
"""Heading of the rates that the sweeps chose."""
_SHARES = ("new", "prior")


def _number(mean: float | None, half: float | None, field: str) -> str:
    if mean is None:
        return "–"
    scale, digits = (100, 1) if field in _SHARES else (1, 3 if field.startswith("kl") else 1)
    shown = f"{scale * mean:.{digits}f}"
    return shown if half is None else f"{shown} ± {scale * half:.{digits}f}"


def share(estimate: Estimate) -> str:
    """An accuracy in percent with its interval."""
    return _number(*estimate, "new")


def percent_bar(group: str, method: str, values: Sequence[float], paper: float | None = None) -> Bar:
    """The mean over seeds of shares in [0, 1], in percent with its interval."""
    mean, half = _percent(mean_interval(values))
    return Bar(group, method, mean, half, paper)


def percent_line(label: str, x: Sequence[float], estimates: Sequence[Estimate], panel: str = "") -> Line:
    """Estimates of shares in [0, 1], in percent with their intervals."""
    means, halves = zip(*map(_percent, estimates), strict=True)
    return Line(label, x, means, halves, panel)


def _percent(estimate: Estimate) -> tuple[float, float | None]:
    mean, half = estimate
    return 100 * mean, None if half is None else 100 * half


def write(report: Report, directory: Path, caption: str) -> Path:
    """NAME.md, NAME.json and NAME.png of the report in `directory`; returns the first."""
    directory.mkdir(parents=True, exist_ok=True)
    report.draw(directory / f"{report.name}.png", caption)
    plain = {
        "name": report.name,
        "title": report.title,
        "paper": report.paper,
        "verdict": report.verdict,
        "checks": [
            dataclasses.asdict(check) | {"estimate": check.estimate._asdict(), "verdict": check.verdict}
            for check in report.checks
        ],
        "rows": list(report.rows),
        "sweep": [dataclasses.asdict(row) for row in report.sweep],
        "notes": list(report.notes),
        "measured on": caption,
    }
    (directory / f"{report.name}.json").write_text(json.dumps(plain, indent=1, ensure_ascii=False), "utf-8")
    path = directory / f"{report.name}.md"
    path.write_text(markdown(report, caption), encoding="utf-8")
    return path


def markdown(report: Report, caption: str) -> str:
    """The report to be read: verdict, what the paper says, table, checks, picture, notes, sweep."""
    lines = [f"## {report.title}", "", f"`sdft lab {report.name}`: **{report.verdict}**. {caption}", ""]
    lines += [f"The paper: {report.paper}", "", *markdown_table(report.rows), ""]
    lines += [f"- {check}{f' (paper: {check.paper})' if check.paper else ''}" for check in report.checks]
    lines += ["", f"![{report.title}]({report.name}.png)", ""]
    lines += [line for note in report.notes for line in (note, "")]
    if report.sweep:
        summary = (
            "Learning rates: new / prior skills (%) on validation rows, one run each; the chosen in bold"
        )
        lines += [f"<details><summary>{summary}</summary>", ""]
        lines += [*markdown_table(_sweep_rows(report.sweep)), "", "</details>", ""]
    return "\n".join(lines)


def _sweep_rows(sweep: Sequence[Swept]) -> list[Row]:
    """A row for each variant, a column for each rate: new / prior, the chosen one in bold."""
    columns = [scientific(rate) for rate in sorted({trial.rate for trial in sweep})]
    rows: dict[str, dict[str, str]] = {}
    for trial in sweep:
        cell = f"{100 * trial.new:.1f} / {100 * trial.prior:.1f}"
        row = rows.setdefault(trial.label, {"": trial.label} | dict.fromkeys(columns, "–"))
        row[scientific(trial.rate)] = f"**{cell}**" if trial.chosen else cell
    return list(rows.values())
