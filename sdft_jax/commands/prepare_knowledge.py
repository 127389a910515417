"""`sdft prepare knowledge`: questions on articles, which a model behind an endpoint writes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from sdft_jax.commands.prepare import RECORD, write_tfds
from sdft_jax.config import Config
from sdft_jax.evaluation.endpoint import check_endpoint
from sdft_jax.files import json_line, refuse_source, write_errors, write_text
from sdft_jax.reporting.reporter import Reporter, process_reporter
from sdft_jax.reporting.tables import summary_table
from sdft_jax.tasks.articles import read_articles
from sdft_jax.tasks.fields import Row
from sdft_jax.tasks.knowledge import Knowledge, prepare

SPLITS = ("train", "test", "articles")
_LISTED = 3
"""Number of failures that are printed."""


def run(paths: Sequence[str], out: str, config: Config, tfds: bool = False) -> Knowledge:
    """Write train.jsonl, test.jsonl, articles.jsonl and a record of them, and print a table.

    Args:
        paths: files, directories or data sets of articles.
        out: the directory to write.
        config: its `judge` and `knowledge` sections select the endpoint and the questions.
        tfds: True to write ArrayRecord files for TFDS instead of train.jsonl and test.jsonl.

    Raises:
        SdftError: an article cannot be read, the endpoint cannot be used or is down, or the directory cannot
            be written.
    """
    reporter = process_reporter()
    check_endpoint(config.judge)
    directory = Path(out)
    with write_errors(out, "give another directory"):
        directory.mkdir(parents=True, exist_ok=True)
    files = [path for path in paths if Path(path).is_file()]
    for name in SPLITS:
        refuse_source(directory / f"{name}.jsonl", files, "give another directory to write to")
    articles = read_articles(paths)
    knowledge = prepare(articles, config, functools.partial(reporter.track, description="questions"))
    splits = dict(zip(SPLITS, (knowledge.train, knowledge.test, knowledge.texts), strict=True))
    texts = {name: "".join(map(json_line, rows)) for name, rows in splits.items()}
    with write_errors(out, "give another directory"):
        lines = SPLITS[2:] if tfds else SPLITS
        for name in lines:
            write_text(directory / f"{name}.jsonl", texts[name])
        places = {name: directory / f"{name}.jsonl" for name in lines}
        if tfds:
            makers = {name: functools.partial(iter, splits[name]) for name in SPLITS[:2]}
            data_set = write_tfds("knowledge", "", makers, directory, replace=True)
            places |= {name: split.path for name, split in data_set.items()}
        record = {
            "task": "knowledge",
            "splits": {
                name: {
                    "path": str(places[name].relative_to(directory)),
                    "rows": len(splits[name]),
                    "sha256": _sha256(text),
                }
                for name, text in texts.items()
            },
            "articles": [
                {"title": one.title, "source": one.place, "sha256": _sha256(one.text)} for one in articles
            ],
            "model": config.judge.model,
            "knowledge": dataclasses.asdict(config.knowledge),
            "refused": [
                {"kind": kind, "reason": reason, "questions": count}
                for (kind, reason), count in knowledge.refused.most_common()
            ],
            "failures": knowledge.failures,
        }
        write_text(directory / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    _report(reporter, knowledge, directory, len(articles))
    return knowledge


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _report(reporter: Reporter, knowledge: Knowledge, directory: Path, articles: int) -> None:
    def count(rows: Sequence[Row], kind: str) -> int:
        return sum(row["skill"] == kind for row in rows)

    table = [
        {
            "questions": kind,
            "train": count(knowledge.train, kind),
            "test": count(knowledge.test, kind),
            "refused": sum(number for (refused, _), number in knowledge.refused.items() if refused == kind),
        }
        for kind in ("direct", "ood")
    ]
    title = f"{articles} articles in {len(knowledge.texts)} passages"
    reporter.print(summary_table(table, title))
    for (kind, reason), number in knowledge.refused.most_common():
        reporter.print(f"refused  {number} {kind}: {reason}")
    if failures := knowledge.failures:
        more = f"; and {len(failures) - _LISTED} more" if len(failures) > _LISTED else ""
        reporter.print(
            f"{len(failures)} requests have no usable reply: {'; '.join(failures[:_LISTED])}{more}. The same "
            "command asks for these only."
        )
    reporter.print(f"rows and record  {directory}")
