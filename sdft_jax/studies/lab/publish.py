"""Publishes the lab's reports: writes them between two markers of a README.md and copies their pictures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.files import read_json, read_text, write_errors, write_text
from sdft_jax.studies.lab.experiments import EXPERIMENTS

BEGIN, END = "<!-- results of `sdft lab` begin here -->", "<!-- and end here -->"

REMEDY = "remove it, or run the experiment again"
"""The end of error messages about reports."""


def page(target: str) -> str:
    """Return the text of README.md in the directory `target`, or an empty page if there is no such file.

    Raises:
        SdftError: the directory does not exist, or its README.md lacks the two markers.
    """
    directory = Path(target)
    if not directory.is_dir():
        raise SdftError(f"--publish {target}: this directory does not exist: create it or give another one.")
    file = directory / "README.md"
    text = read_text(file, "write it again") if file.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise SdftError(f"{file} lacks the lines {BEGIN!r} and {END!r}: add them where the results belong.")
    return text


def publish(source: Path, target: str) -> None:
    """Write all reports in the directory `source`, of this and earlier runs, to README.md in `target`."""
    before, _, rest = page(target).partition(BEGIN)
    names = [name for name in EXPERIMENTS if (source / f"{name}.json").is_file()]
    reports = [_report(source / f"{name}.json") for name in names]
    overview = ["| experiment | verdict | the paper |", "| --- | --- | --- |", *map(_row, reports)]
    sections = [read_text(source / f"{name}.md", REMEDY) for name in names]
    results = "\n".join([BEGIN, "", *overview, "", *sections, END])
    with write_errors(target, "fix this and publish again"):
        write_text(Path(target) / "README.md", before + results + rest.partition(END)[2])
        for name in names:
            shutil.copyfile(source / f"{name}.png", Path(target) / f"{name}.png")


def _report(file: Path) -> dict[str, Any]:
    """Return a report. Raises SdftError if it is damaged."""
    report = read_json(file, REMEDY)
    if not all(isinstance(report.get(key), str) for key in ("name", "title", "verdict", "paper")):
        raise SdftError(f"{file} is not a report of sdft lab: {REMEDY}.")
    return report


def _row(report: Mapping[str, Any]) -> str:
    return (
        f"| [{report['name']}](#{_anchor(report['title'])}) | **{report['verdict']}** | {report['paper']} |"
    )


def _anchor(title: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
