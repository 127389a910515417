"""Publishes the lab's reports: writes them between two markers of a README.md and copies their pictures.

Reports of other experiments that are already on the page remain, so one experiment can be published alone.
"""

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


def page(target: str, name: str = "README.md") -> str:
    """Return the text of the file `name` in the directory `target`, or an empty page if there is none.

    Raises:
        SdftError: the directory does not exist, or the file lacks the two markers.
    """
    directory = Path(target)
    if not directory.is_dir():
        raise SdftError(f"--publish {target}: this directory does not exist: create it or give another one.")
    file = directory / name
    text = read_text(file, "write it again") if file.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise SdftError(f"{file} lacks the lines {BEGIN!r} and {END!r}: add them where the results belong.")
    return text


def publish(source: Path, target: str) -> None:
    """Write all reports in the directory `source`, of this and earlier runs, to README.md in `target`."""
    before, _, rest = page(target).partition(BEGIN)
    old, _, after = rest.partition(END)
    names = [name for name in EXPERIMENTS if (source / f"{name}.json").is_file()]
    entries = _entries(old) | {
        name: (_row(_report(source / f"{name}.json")), read_text(source / f"{name}.md", REMEDY))
        for name in names
    }
    listed = [entries[name] for name in EXPERIMENTS if name in entries]
    overview = ["| experiment | verdict | the paper |", "| --- | --- | --- |", *(row for row, _ in listed)]
    results = "\n".join([BEGIN, "", *overview, "", *(text for _, text in listed), END])
    with write_errors(target, "fix this and publish again"):
        write_text(Path(target) / "README.md", before + results + after)
        for name in names:
            shutil.copyfile(source / f"{name}.png", Path(target) / f"{name}.png")


def _entries(results: str) -> dict[str, tuple[str, str]]:
    """Return the row of the overview and the section of each report in the results of a page, by name."""
    rows = {match[1]: match[0] for match in re.finditer(r"^\| \[(.+?)\]\(#.*$", results, re.MULTILINE)}
    sections = {
        match[1]: section.rstrip("\n") + "\n"
        for section in re.split(r"^(?=## )", results, flags=re.MULTILINE)
        if (match := re.match(r"## .*\n\n`sdft lab (.+?)`: ", section))
    }
    return {name: (rows[name], section) for name, section in sections.items() if name in rows}


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
