"""Reports of experiments: a table, a picture, and a verdict on each of the paper's claims."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sdft_jax.continual.stages import scientific
from sdft_jax.files import write_text
from sdft_jax.reporting.charts import Bar, Line
from sdft_jax.reporting.reporter import process_reporter
from sdft_jax.reporting.statistics import Estimate, difference_interval, mean_interval
from sdft_jax.reporting.tables import markdown_table
from sdft_jax.studies.lab.lab import Comparison, Swept

Verdict = Literal["agrees", "differs", "cannot be told"]
Row = Mapping[str, Any]
_ROUNDING = 1e-9
"""The rounding error of a mean: the same accuracies in another order may differ by this much."""
_UNCLAIMED = {"agrees": "holds", "differs": "does not hold", "cannot be told": "cannot be told"}
"""Verdicts on checks that are not claims of the paper."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A difference that is expected to be positive: a claim of the paper, or an additional check of ours."""

    claim: str
    estimate: Estimate
    paper: str = ""
    """The paper's result, in its own numbers."""
    unit: str = "points"
    scale: float = 100.0
    """Factor that converts the estimate to `unit`."""
    claimed: bool = True
    """True if this is a claim of the paper; the experiment's verdict depends on these checks only."""

    @property
    def verdict(self) -> Verdict:
        """The verdict: `agrees` if the interval is above 0, `differs` if it is below, else `cannot be told`.

        A single run has no interval, so its verdict is `cannot be told`.
        """
        mean, half = self.estimate
        if half is None:
            return "cannot be told"
        if mean - half > _ROUNDING:
            return "agrees"
        return "differs" if mean + half < -_ROUNDING else "cannot be told"

    def __str__(self) -> str:
        """Return the claim with its value, interval and verdict."""
        mean, half = self.estimate
        digits = 1 if self.scale == 100 else 2
        interval = "one run" if half is None else f"± {self.scale * half:.{digits}f}"
        text = f"{self.claim}: {self.scale * mean:+.{digits}f} {self.unit} ({interval})"
        if self.claimed:
            return f"{text}: **{self.verdict}**"
        return f"{text}: **{_UNCLAIMED[self.verdict]}**, not part of the verdict"


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of one experiment."""

    name: str
    title: str
    paper: str
    """The paper's result, with its table, figure or section."""
    checks: Sequence[Check]
    rows: Sequence[Row]
    draw: Callable[[Path, str], None]
    """Draws the picture, given the file to write and the caption."""
    sweep: Sequence[Swept] = ()
    notes: Sequence[str] = ()
    """Explanations of the table, one sentence or paragraph each."""

    @property
    def verdict(self) -> Verdict:
        """The verdict: `differs` if a claim differs, `agrees` if all claims agree, else `cannot be told`.

        Only claims of the paper count.
        """
        verdicts = {check.verdict for check in self.checks if check.claimed}
        if "differs" in verdicts:
            return "differs"
        return "agrees" if verdicts == {"agrees"} else "cannot be told"


def exceeds(
    comparison: Comparison,
    field: str,
    winner: str,
    loser: str,
    claim: str,
    paper: str = "",
    claimed: bool = True,
) -> Check:
    """Return the check that `winner` exceeds `loser` in `field` (new or prior accuracy), paired by seed."""
    values = comparison.values(winner, field), comparison.values(loser, field)
    return Check(claim, difference_interval(*values), paper, claimed=claimed)


def table(
    comparison: Comparison, columns: Mapping[str, str], teacher: str | None = "base, shown the demonstration"
) -> list[Row]:
    """Return rows for the base model, its teacher and each variant; `columns` maps fields to headings."""
    before = {field: 0.0 if field == "kl" else comparison.before(field) for field in columns}
    rows: list[Row] = [
        {"": "base", RATE: "–"}
        | {title: _number(before[field], None, field) for field, title in columns.items()}
    ]
    if teacher and "teacher" in comparison.base:
        measured = [field for field in columns if field in ("new", "length", "kl_new")]
        rows.append(
            {"": teacher}
            | {
                columns[field]: _number(comparison.before(field, "teacher"), None, field)
                for field in measured
            }
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
"""Columns of most tables: accuracy on the new skill and on prior skills, KL(model || base) in nats per token
on the model's own answers to prior and to new prompts, and the mean number of tokens in an answer to the new
skill."""
RATE = "learning rate"
"""Heading of the column with the learning rates that the sweeps chose."""
_SHARES = ("new", "prior")


def _number(mean: float | None, half: float | None, field: str) -> str:
    if mean is None:
        return "–"
    scale, digits = (100, 1) if field in _SHARES else (1, 3 if field.startswith("kl") else 1)
    text = f"{round(scale * mean, digits) + 0.0:.{digits}f}"  # -0.0 + 0.0 is 0.0
    return text if half is None else f"{text} ± {scale * half:.{digits}f}"


def share(estimate: Estimate) -> str:
    """Format an accuracy as percent, with its interval."""
    return _number(*estimate, "new")


def percent_bar(group: str, method: str, values: Sequence[float], paper: float | None = None) -> Bar:
    """Return a bar for the mean over seeds of shares in [0, 1], in percent with its interval."""
    mean, half = _percent(mean_interval(values))
    return Bar(group, method, mean, half, paper)


def percent_line(label: str, x: Sequence[float], estimates: Sequence[Estimate], panel: str = "") -> Line:
    """Return a line through estimates of shares in [0, 1], in percent with their intervals."""
    means, halves = zip(*map(_percent, estimates), strict=True)
    return Line(label, x, means, halves, panel)


def _percent(estimate: Estimate) -> tuple[float, float | None]:
    mean, half = estimate
    return 100 * mean, None if half is None else 100 * half


def write(report: Report, directory: Path, caption: str) -> Path:
    """Write NAME.md, NAME.json and NAME.png of the report to `directory`, and return the path of NAME.md.

    If the picture cannot be written, a sentence names it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    content = {
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
    path = directory / f"{report.name}.md"
    write_text(directory / f"{report.name}.json", json.dumps(content, indent=1, ensure_ascii=False))
    write_text(path, markdown(report, caption))
    picture = directory / f"{report.name}.png"
    with process_reporter().tolerating(picture):
        report.draw(picture, caption)
    return path


def markdown(report: Report, caption: str) -> str:
    """Return the report as Markdown: verdict, the paper's result, table, checks, picture, notes, sweep."""
    lines = [f"## {report.title}", "", f"`sdft lab {report.name}`: **{report.verdict}**. {caption}", ""]
    lines += [*_wrap(f"The paper: {report.paper}"), "", *markdown_table(report.rows), ""]
    for check in report.checks:
        lines += _wrap(f"- {check}{f' (paper: {check.paper})' if check.paper else ''}", indent="  ")
    lines += ["", f"![{report.title}]({report.name}.png)", ""]
    lines += [line for note in report.notes for line in (*_wrap(note), "")]
    if report.sweep:
        summary = (
            "Learning rates: new / prior skills (%) on validation rows, one run each; chosen rate in bold"
        )
        lines += [f"<details><summary>{summary}</summary>", ""]
        lines += [*markdown_table(_sweep_rows(report.sweep)), "", "</details>", ""]
    return "\n".join(lines)


def _wrap(text: str, indent: str = "") -> list[str]:
    """Wrap a paragraph to lines of 120 characters; `indent` precedes all lines but the first."""
    # A line that began with -, + or | would start a list or a table.
    glued = re.sub(r" (?=[-+|])", "\xa0", text)
    lines = textwrap.wrap(
        glued, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\xa0", " ") for line in lines]


def _sweep_rows(sweep: Sequence[Swept]) -> list[Row]:
    """Return a row per variant with a column per rate: new / prior accuracy, the chosen rate in bold."""
    columns = [scientific(rate) for rate in sorted({trial.rate for trial in sweep})]
    rows: dict[str, dict[str, str]] = {}
    for trial in sweep:
        cell = f"{100 * trial.new:.1f} / {100 * trial.prior:.1f}"
        row = rows.setdefault(trial.label, {"": trial.label} | dict.fromkeys(columns, "–"))
        row[scientific(trial.rate)] = f"**{cell}**" if trial.chosen else cell
    return list(rows.values())
