"""Reports of the lab as one page: what stands between two marks of a README, with pictures beside it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.studies.lab.experiments import EXPERIMENTS

BEGIN, END = "<!-- results of `sdft lab` begin here -->", "<!-- and end here -->"


def page(target: str) -> str:
    """README.md of the directory `target`, or an empty page; looked at before any long work.

    Raises:
        SdftError: there is no such directory, or its README.md lacks the two marks.
    """
    directory = Path(target)
    if not directory.is_dir():
        raise SdftError(f"--publish {target}: there is no such directory; make it, or give another.")
    file = directory / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else f"{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise SdftError(f"{file} lacks the lines {BEGIN!r} and {END!r}: add them where results shall stand.")
    return text


def publish(place: Path, target: str) -> None:
    """Put every report that lies in `place`, of this and of earlier runs, on the page `target`."""
    before, _, rest = page(target).partition(BEGIN)
    found = [name for name in EXPERIMENTS if (place / f"{name}.json").is_file()]
    reports = [json.loads((place / f"{name}.json").read_text(encoding="utf-8")) for name in found]
    overview = ["| experiment | verdict | the paper |", "| --- | --- | --- |", *map(_row, reports)]
    sections = [(place / f"{name}.md").read_text(encoding="utf-8") for name in found]
    results = "\n".join([BEGIN, "", *overview, "", *sections, END])
    (Path(target) / "README.md").write_text(before + results + rest.partition(END)[2], encoding="utf-8")
    for name in found:
        shutil.copyfile(place / f"{name}.png", Path(target) / f"{name}.png")


def _row(report: Mapping[str, Any]) -> str:
    return (
        f"| [{report['name']}](#{_anchor(report['title'])}) | **{report['verdict']}** | {report['paper']} |"
    )


def _anchor(title: str) -> str:
    """How GitHub names a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
