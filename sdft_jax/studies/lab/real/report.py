"""The report of the study: tables, answers and pictures for REAL.md."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdft_jax.continual.stages import scientific
from sdft_jax.reporting.charts import Bar, plot_bars
from sdft_jax.reporting.reporter import process_reporter
from sdft_jax.reporting.statistics import mcnemar, mean_interval
from sdft_jax.reporting.tables import markdown_table
from sdft_jax.studies.lab.real.matrix import METHODS, SEARCH, Findings, Scored, best
from sdft_jax.studies.lab.real.study import TASKS
from sdft_jax.studies.lab.reports import Row, percent_bar, share

PICTURES = ("real-new.png", "real-prior.png")
"""Accuracy on the tasks, and the distance from the base model on general questions."""
_UNTRAINED = {"seconds": "–", "CPU seconds": "–"}
SHOWN = 7
"""The answers to the first prompt of a task and to every seventh prompt after it are shown."""


def markdown(findings: Findings, caption: str) -> str:
    """Return the results as Markdown."""
    lines = [caption, "", "![Accuracy on the tasks](real-new.png)", ""]
    lines += ["![Distance from the base model](real-prior.png)", ""]
    for task in TASKS.values():
        lines += [f"### {task.title}", "", *markdown_table(task_rows(findings, task.name)), ""]
        for claim in claims(findings, task.name):
            lines += textwrap.wrap(f"- {claim}", 120, subsequent_indent="  ", break_on_hyphens=False)
        lines += ["", "The sweep, with one seed:", "", *markdown_table(sweep_rows(findings, task.name))]
        lines += ["", "Greedy answers before and after, of the first seed:", ""]
        lines += [*markdown_table(answers(findings, task.name)), ""]
    for name in TASKS:
        if rows := search_rows(findings, name):
            lines += [f"### Search: {name}", "", *markdown_table(rows), ""]
    return "\n".join(lines)


def draw(findings: Findings, directory: Path, caption: str) -> None:
    """Write the pictures. If one cannot be written, a sentence names it."""
    labels = {"base": findings.base, "oracle": findings.teacher}
    new = [
        percent_bar(f"{task.title}: {kind}", label, [by_task[task.name].share(kind)])
        for task in TASKS.values()
        for kind in kinds(findings, task.name)
        for label, by_task in labels.items()
    ]
    new += [
        percent_bar(f"{task.title}: {kind}", METHODS[method], [run.share(kind) for run in runs])
        for task in TASKS.values()
        for kind in kinds(findings, task.name)
        for method, runs in findings.methods[task.name].items()
    ]
    moved = [
        Bar(task.title, METHODS[method], *mean_interval([run.kl_prior for run in runs]))
        for task in TASKS.values()
        for method, runs in findings.methods[task.name].items()
    ]
    units = ("accuracy (%)", "KL to base on general questions (nats per token)")
    for name, bars, unit in zip(PICTURES, (new, moved), units, strict=True):
        with process_reporter().tolerating(directory / name):
            plot_bars(bars, directory / name, caption, y_label=unit)


def kinds(findings: Findings, task: str) -> list[str]:
    """Return the kinds of prompts of a task; the second is not demonstrated."""
    return [kind for kind in findings.base[task].verdicts if kind != "prior"]


def task_rows(findings: Findings, task: str) -> list[Row]:
    """Return the table of a task: base, oracle, and every method."""
    base = {**_row("base", [findings.base[task]]), **_UNTRAINED}
    rows: list[Row] = [base, _oracle_row(findings.teacher[task])]
    return rows + [_row(METHODS[method], runs) for method, runs in findings.methods[task].items()]


def sweep_rows(findings: Findings, task: str) -> list[Row]:
    """Return the table of the rates of every method on a task; the chosen ones are marked."""
    rows: list[Row] = []
    for method, results in findings.sweep[task].items():
        for result in results:
            chosen = "chosen" if result is best(results) else ""
            validation = share(mean_interval([sum(result.validation) / len(result.validation)]))
            row = _row(METHODS[method], [result])
            rows.append({"": row[""], "rate": row["rate"], "validation (%)": validation, **row, " ": chosen})
    return rows


def search_rows(findings: Findings, task: str) -> list[Row]:
    """Return the table of the trials of the search on a task."""
    return [_row(name, [result]) for name, result in findings.search.items() if SEARCH[name][0] == task]


def claims(findings: Findings, task: str) -> Iterator[str]:
    """Yield the comparison of SDFT with every other method, paired by row and seed (McNemar's exact test)."""
    methods = findings.methods[task]
    for other in methods:
        if other == "sdft":
            continue
        for name, of in (("the task", lambda x: x.new), ("general questions", lambda x: x.verdicts["prior"])):
            ours, theirs = (
                list(itertools.chain.from_iterable(of(run) for run in methods[method]))
                for method in ("sdft", other)
            )
            test = mcnemar(theirs, ours)
            verdict = "cannot be told"
            if test.p < 0.05:
                verdict = "SDFT is above" if test.gained > test.forgotten else "SDFT is below"
            yield (
                f"SDFT against {METHODS[other]} on {name}: {sum(ours)} against {sum(theirs)} of {len(ours)}; "
                f"{test.gained} rows only SDFT, {test.forgotten} only {METHODS[other]}, p = {test.p:.2g}: "
                f"**{verdict}**"
            )


def answers(findings: Findings, task: str) -> list[Row]:
    """Return answers of all models to some prompts of a task."""
    models = {"base": findings.base[task], "base with the context": findings.teacher[task]}
    models |= {METHODS[method]: runs[0] for method, runs in findings.methods[task].items()}
    rows: list[Row] = []
    for index in range(0, len(findings.base[task].completions), SHOWN):
        texts = {name: _plain(model.completions[index]) for name, model in models.items()}
        rows.append({"prompt": TASKS[task].test()[index]["prompt"]} | texts)
    return rows


def _plain(text: str) -> str:
    """Return a completion for a cell of a table, with its Markdown visible."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "/") + "`"


def _row(label: str, runs: Sequence[Scored]) -> Row:
    def number(values: Sequence[float], digits: int) -> str:
        mean, half = mean_interval(values)
        return f"{round(mean, digits) + 0.0:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")

    shares = {
        f"{kind} (%)": share(mean_interval([run.share(kind) for run in runs])) for kind in runs[0].verdicts
    }
    return {
        "": label,
        "rate": scientific(runs[0].rate) if runs[0].rate else "–",
        **shares,
        "KL prior": number([run.kl_prior for run in runs], 3),
        "perplexity": number([run.perplexity for run in runs], 1),
        "tokens": number([run.length for run in runs], 1),
        "seconds": number([run.seconds for run in runs], 0),
        "CPU seconds": number([run.cpu_seconds for run in runs], 0),
    }


def _oracle_row(teacher: Scored) -> Row:
    """Return the row of the oracle, whose prior skills are those of the base model."""
    row = dict(_row("oracle: the context in the prompt", [teacher]))
    return row | _UNTRAINED | {key: "–" for key in ("prior (%)", "KL prior", "perplexity")}
