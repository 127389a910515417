"""`sdft lab`: one experiment, or all of them, into reports that can be read and published."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sdft_jax.errors import SdftError
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.tables import summary_table
from sdft_jax.studies.lab.experiments import EXPERIMENTS, experiment
from sdft_jax.studies.lab.lab import Lab
from sdft_jax.studies.lab.pool import default_workers
from sdft_jax.studies.lab.publish import page
from sdft_jax.studies.lab.publish import publish as write_page
from sdft_jax.studies.lab.reports import Report, write


def run(
    names: Sequence[str],
    output: str,
    seeds: Sequence[int],
    quick: bool,
    workers: int | None,
    publish: str | None,
) -> list[Report]:
    """Run experiments one after the other; finished trials are kept and never run again.

    Args:
        names: of experiments, or `all`.
        output: directory of trials and reports.
        seeds: of data order and sampling, three for an interval that means something.
        quick: one seed, fewer steps.
        workers: processes; None: one for each core of a CPU, one on an accelerator.
        publish: directory whose README.md gets all reports so far between its two marks, and the pictures.

    Raises:
        SdftError: there is no such experiment, or a trial failed.
    """
    for name in names:
        if name != "all" and name not in EXPERIMENTS:
            raise SdftError(f"lab: there is no experiment {name}; there are all, {', '.join(EXPERIMENTS)}.")
    if publish:
        page(publish)
    chosen = list(EXPERIMENTS) if "all" in names else list(dict.fromkeys(names))
    place = Path(output) / ("quick" if quick else "full")
    used = tuple(seeds)[:1] if quick else tuple(seeds)
    lab = Lab(place / "trials", used, workers or default_workers(), quick)
    console = Console()
    caption = (
        f"Measured on {describe_hardware()}; seeds {', '.join(map(str, used))}{'; --quick' if quick else ''}."
    )
    reports = []
    for number, name in enumerate(chosen):
        console.print(
            f"[bold]{name}[/] ({number + 1} of {len(chosen)}): {EXPERIMENTS[name][1]}", highlight=False
        )
        begun = time.monotonic()
        report = experiment(name)(lab)
        path = write(report, place, caption)
        console.print(summary_table(report.rows, report.title))
        for check in report.checks:
            console.print(f"  {str(check).replace('**', '')}", highlight=False, soft_wrap=True)
        console.print(
            f"{report.verdict}; {time.monotonic() - begun:.0f} s; {path}", highlight=False, soft_wrap=True
        )
        reports.append(report)
    console.print(summary_table(_overview(reports), "The paper's findings, in small"))
    if publish:
        write_page(place, publish)
    return reports


def _overview(reports: Sequence[Report]) -> list[dict[str, str]]:
    return [
        {"experiment": report.name, "verdict": report.verdict, "the paper": report.paper}
        for report in reports
    ]
