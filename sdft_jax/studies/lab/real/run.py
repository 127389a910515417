"""`sdft lab real`: the study on a pretrained model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from sdft_jax.errors import SdftError
from sdft_jax.files import write_errors, write_text
from sdft_jax.models import model_directory, read_architecture
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.reporting.stream import make_console
from sdft_jax.reporting.tables import summary_table
from sdft_jax.studies.lab.publish import BEGIN, END, page
from sdft_jax.studies.lab.real import report
from sdft_jax.studies.lab.real.matrix import Findings, Study, find
from sdft_jax.studies.lab.real.study import TASKS

PAGE = "REAL.md"


def run(model: str | None, output: str, seeds: Sequence[int], quick: bool, publish: str | None) -> Findings:
    """Run the study, or the trials of it that are not stored; write REAL.md and its pictures after each part.

    Args:
        model: Hugging Face directory or name of an instruction-tuned model.
        output: directory of trials and report.
        seeds: seeds of data order and sampling.
        quick: two steps on eight rows, with one seed: a check that everything runs.
        publish: directory whose REAL.md receives the results, between two markers, and the pictures.

    Raises:
        SdftError: there is no model, a trial failed, or `publish` is not a directory with a valid page.
    """
    if not model:
        raise SdftError("sdft lab real requires a model: add --model DIR, a Hugging Face directory.")
    read_architecture(model_directory(model))  # raises before any trial runs
    if publish:
        page(publish, PAGE)
    directory = Path(output) / ("real-quick" if quick else "real")
    seeds = tuple(seeds)[:1] if quick else tuple(seeds)
    listed = ", ".join(map(str, seeds)) + ("; --quick" if quick else "")
    caption = f"Measured on {describe_hardware()}; seeds {listed}."
    for findings in find(Study(model, directory / "trials", seeds, quick)):
        _write(findings, directory, publish, caption)
    console = make_console()
    for task in TASKS.values():
        console.print(summary_table(report.task_rows(findings, task.name), task.title))
        for claim in report.claims(findings, task.name):
            console.print(f"  {claim.replace('**', '')}", highlight=False, soft_wrap=True)
    console.print(f"report: {directory / PAGE}", highlight=False, soft_wrap=True)
    return findings


def _write(findings: Findings, directory: Path, target: str | None, caption: str) -> None:
    """Write the results so far and their pictures to `directory` and, between the markers of its page, to
    `target`.
    """
    text = report.markdown(findings, caption)
    write_text(directory / PAGE, f"{BEGIN}\n\n{text}\n{END}\n")
    report.draw(findings, directory, caption)
    if not target:
        return
    before, _, rest = page(target, PAGE).partition(BEGIN)
    after = rest.partition(END)[2]
    with write_errors(target, "fix this and publish again"):
        write_text(Path(target) / PAGE, f"{before}{BEGIN}\n\n{text}\n{END}{after}")
        for name in report.PICTURES:
            shutil.copyfile(directory / name, Path(target) / name)
