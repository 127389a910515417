"""`sdft prepare`: the rows of a task from the files of its released data set, as JSON lines or for TFDS."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.errors import SdftError
from sdft_jax.files import json_line, open_replacement, refuse_source, write_errors, write_text
from sdft_jax.files.hashing import path_sha256
from sdft_jax.reporting.stream import make_console
from sdft_jax.reporting.tables import summary_table
from sdft_jax.tasks.conversion import LeftOut, Maker, find_sources, split_rows
from sdft_jax.tasks.fields import Row
from sdft_jax.tasks.table import get_task

RECORD = "prepared.json"
"""The file with the rows and the checksum of each split, and the checksum of its source."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `sdft prepare`."""

    hold_out: int = 0
    """Number of prompts to move from train to test."""
    skip: bool = False
    """Leave out rows that cannot be converted, instead of ending with an error."""
    tfds: bool = False
    """Write ArrayRecord files for TFDS instead of JSON lines."""


class Split:
    """A split that is being written: its rows, and what is known of them afterwards."""

    def __init__(self, path: Path, maker: Maker):
        self.path = path  # the file, or the directory of a TFDS data set
        self._maker = maker
        self.rows = self.others = self.invalid = 0
        self.first_error = ""
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The checksum of the rows as JSON lines, which is the same for both formats."""
        return self._sha256.hexdigest()

    @property
    def left_out(self) -> str:
        """The numbers of raw rows that were left out; of the invalid ones also the first error."""
        reasons = [f"{self.others} raw rows are not part of the task"] if self.others else []
        if self.invalid:
            reasons.append(f"{self.invalid} cannot be converted, such as {self.first_error.rstrip('.')}")
        return ", ".join(reasons)

    def lines(self) -> Iterator[tuple[Row, bytes]]:
        """Yield each row and its line of JSON, once. Raises SdftError if there are no rows."""
        for row in self._maker():
            if isinstance(row, LeftOut):
                self.others += row.error is None
                self.invalid += row.error is not None
                self.first_error = self.first_error or row.error or ""
                continue
            line = json_line(row).encode()
            self._sha256.update(line)
            self.rows += 1
            yield row, line
        if not self.rows:
            raise SdftError(
                f"{self.path} would have no rows ({self.left_out or 'its source is empty'}): give other raw "
                "files."
            )


def run(name: str, words: Sequence[str], out: str, options: Options) -> dict[str, Split]:
    """Convert the raw files of a task, write its splits and their checksums, and print a table.

    Args:
        name: the name of the task.
        words: raw files, as `PATH` or `SPLIT=PATH`; for task rule also the name of a guide.
        out: the directory to write.
        options: the options.

    Raises:
        SdftError: a raw file cannot be read or would be replaced, or a row cannot be converted.
    """
    task = get_task(name)
    if "://" in out:
        raise SdftError(f"{out} is in a bucket: give a local directory, and copy it.")
    sources = find_sources(task, words)
    makers = split_rows(task, sources, options.hold_out, options.skip)
    directory = Path(out)
    with write_errors(out, "give another directory"):
        directory.mkdir(parents=True, exist_ok=True)
        splits = (
            write_tfds(name, words[0], makers, directory)
            if options.tfds
            else _write_lines(makers, sources.values(), directory)
        )
        record = {
            split: {
                "path": str(one.path.relative_to(directory)),
                "rows": one.rows,
                "sha256": one.sha256,
                "source": sources.get(split, sources.get("train")),
                "source_sha256": path_sha256(Path(sources.get(split, sources.get("train", "")))),
            }
            for split, one in splits.items()
        }
        text = json.dumps({"task": name, "splits": record}, indent=2, ensure_ascii=False)
        write_text(directory / RECORD, text + "\n")
    _report(name, splits, directory)
    return splits


def _write_lines(makers: Mapping[str, Maker], sources: Iterable[str], directory: Path) -> dict[str, Split]:
    """Write each split as JSON lines; an error leaves its file as it was."""
    splits = {name: Split(directory / f"{name}.jsonl", maker) for name, maker in makers.items()}
    for split in splits.values():
        refuse_source(split.path, sources, "give another directory to write to")
    for split in splits.values():
        with open_replacement(split.path, "wb") as file:
            file.writelines(line for _, line in split.lines())
        file.close()
    return splits


def write_tfds(
    task: str, source: str, makers: Mapping[str, Maker], directory: Path, replace: bool = False
) -> dict[str, Split]:
    """Write all splits with the task's builder.

    Args:
        task: the name of the task.
        source: its source; a guide is a configuration of task rule.
        makers: split -> a function that yields its rows.
        directory: the directory to write.
        replace: True to replace an earlier data set.

    Raises:
        SdftError: the data set exists and is not replaced, or a split has no rows.
    """
    import tensorflow_datasets as tfds

    from sdft_jax.tasks.tfds import make_builder

    builder: Any = make_builder(task, source, directory)
    path = Path(builder.data_dir)
    if path.exists() and replace:
        shutil.rmtree(path)
    elif path.exists():
        raise SdftError(f"{path} exists: remove it, or give another directory.")
    splits = {name: Split(path, maker) for name, maker in makers.items()}
    builder.makers = {
        name: (lambda split=split: (row for row, _ in split.lines())) for name, split in splits.items()
    }
    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as downloads:  # it stays empty
        builder.download_and_prepare(file_format="array_record", download_dir=downloads)
    return splits


def _report(name: str, splits: Mapping[str, Split], directory: Path) -> None:
    console = make_console()
    table = [
        {"split": split, "rows": one.rows, "sha256": one.sha256[:16], "path": str(one.path)}
        for split, one in splits.items()
    ]
    console.print(summary_table(table, f"task {name}"))
    for split, one in splits.items():
        if one.left_out:
            console.print(f"{split}: {one.left_out}.", highlight=False, soft_wrap=True)
    console.print(f"whole checksums: {directory / RECORD}", highlight=False, soft_wrap=True)
