"""`sdft lab`: runs experiments of the paper and writes their reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from sdft_jax.errors import SdftError
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.stream import make_console
from sdft_jax.reporting.tables import summary_table
from sdft_jax.studies.lab.experiments import EXPERIMENTS, experiment
from sdft_jax.studies.lab.lab import Lab
from sdft_jax.studies.lab.pool import default_workers
from sdft_jax.studies.lab.publish import page
from sdft_jax.studies.lab.publish import publish as write_page
from sdft_jax.studies.lab.reports import Report, write

MOST_WORKERS = 256
"""Maximum number of processes."""


def run(
    names: Sequence[str],
    output: str,
    seeds: Sequence[int],
    quick: bool,
    workers: int | None,
    publish: str | None,
) -> list[Report]:
    """Run experiments one after the other; finished trials are stored and reused.

    Args:
        names: names of experiments, or `all`.
        output: directory of trials and reports.
        seeds: seeds of data order and sampling; give at least three for a meaningful interval.
        quick: run one seed with fewer steps.
        workers: number of processes; None: one per core on a CPU, one on an accelerator.
        publish: directory to publish in: all reports so far go into its README.md, between two markers, and
            their pictures next to it.

    Raises:
        SdftError: an experiment does not exist, a seed or the number of workers is wrong, a trial failed, or
            `publish` is not a directory with a valid page.
    """
    _check(names, seeds, workers)
    if publish:
        page(publish)  # raises before any experiment runs
    chosen = list(EXPERIMENTS) if "all" in names else list(dict.fromkeys(names))
    directory = Path(output) / ("quick" if quick else "full")
    seeds = tuple(seeds)[:1] if quick else tuple(seeds)
    lab = Lab(directory / "trials", seeds, workers or default_workers(), quick)
    console = make_console()
    listed = ", ".join(map(str, seeds)) + ("; --quick" if quick else "")
    caption = f"Measured on {describe_hardware()}; seeds {listed}."
    reports = []
    for number, name in enumerate(chosen):
        console.print(
            f"[bold]{name}[/] ({number + 1} of {len(chosen)}): {EXPERIMENTS[name][1]}", highlight=False
        )
        start = time.monotonic()
        report = experiment(name)(lab)
        path = write(report, directory, caption)
        console.print(summary_table(report.rows, report.title))
        for check in report.checks:
            console.print(f"  {str(check).replace('**', '')}", highlight=False, soft_wrap=True)
        console.print(
            f"{report.verdict}; {time.monotonic() - start:.0f} s; {path}", highlight=False, soft_wrap=True
        )
        reports.append(report)
    console.print(summary_table(_overview(reports), "The paper's findings at small scale"))
    if publish:
        write_page(directory, publish)
    return reports


def _check(names: Sequence[str], seeds: Sequence[int], workers: int | None) -> None:
    """Raise SdftError for an experiment that does not exist, or a wrong seed or number of workers."""
    for name in names:
        if name != "all" and name not in EXPERIMENTS:
            raise SdftError(
                f"lab: there is no experiment {name}: choose all or some of {', '.join(EXPERIMENTS)}."
            )
    for seed in seeds:
        if not 0 <= seed < 2**32 or list(seeds).count(seed) > 1:
            raise SdftError(f"--seeds {seed}: give seeds from 0 to {2**32 - 1}, each of them once.")
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise SdftError(f"--workers {workers}: give a number from 1 to {MOST_WORKERS}.")


def _overview(reports: Sequence[Report]) -> list[dict[str, str]]:
    return [
        {"experiment": report.name, "verdict": report.verdict, "the paper": report.paper}
        for report in reports
    ]
