"""Publishes the lab's reports: writes them between two markers of a README.md and copies their pictures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.files import read_json, write_errors, write_text
from sdft_jax.studies.lab.experiments import EXPERIMENTS

BEGIN, END = "<!-- results of `sdft lab` begin here -->", "<!-- and end here -->"


def page(target: str) -> str:
    """Return the text of README.md in the directory `target`, or an empty page if there is no such file.

    Raises:
        SdftError: the directory does not exist, or its README.md lacks the two markers.
    """
    directory = Path(target)
    if not directory.is_dir():
        raise SdftError(f"--publish {target}: this directory does not exist: create it or give another one.")
    file = directory / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else f"{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise SdftError(f"{file} lacks the lines {BEGIN!r} and {END!r}: add them where the results belong.")
    return text


def publish(source: Path, target: str) -> None:
    """Write all reports in the directory `source`, of this and earlier runs, to README.md in `target`."""
    before, _, rest = page(target).partition(BEGIN)
    names = [name for name in EXPERIMENTS if (source / f"{name}.json").is_file()]
    reports = [read_json(source / f"{name}.json", f"run sdft lab {name} again") for name in names]
    overview = ["| experiment | verdict | the paper |", "| --- | --- | --- |", *map(_row, reports)]
    sections = [(source / f"{name}.md").read_text(encoding="utf-8") for name in names]
    results = "\n".join([BEGIN, "", *overview, "", *sections, END])
    with write_errors(target, "fix this and publish again"):
        write_text(Path(target) / "README.md", before + results + rest.partition(END)[2])
        for name in names:
            shutil.copyfile(source / f"{name}.png", Path(target) / f"{name}.png")


def _row(report: Mapping[str, Any]) -> str:
    return (
        f"| [{report['name']}](#{_anchor(report['title'])}) | **{report['verdict']}** | {report['paper']} |"
    )


def _anchor(title: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
