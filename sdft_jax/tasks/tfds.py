"""TFDS builders of the tasks, which write ArrayRecord files and need no TensorFlow.

`sdft prepare TASK RAW... OUT --tfds` runs them. In Python, with the raw files in DIR under the names of the
released data sets (`train_data` and `eval_data`, or `train.jsonl` and `test.jsonl`):

    import tensorflow_datasets as tfds
    import sdft_jax.tasks.tfds

    builder = tfds.builder("sdft_science", data_dir=OUT, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=DIR))

The command `tfds build` itself imports TensorFlow, Apache Beam and mlcroissant (tensorflow-datasets 4.9.10).
Where they are installed, this is the same:

    tfds build sdft_science --imports=sdft_jax.tasks.tfds --manual_dir=DIR --file_format=array_record
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sdft_jax.errors import SdftError
from sdft_jax.tasks.conversion import LeftOut, Maker, sources_below, split_rows
from sdft_jax.tasks.fields import Row
from sdft_jax.tasks.rule import GUIDES
from sdft_jax.tasks.table import TASKS, Task

OWN = "own"
"""The configuration of task rule for a user's own rules."""
_EMPTY: Mapping[str, Any] = {"text": "", "texts": [], "calls": []}
"""Form of an answer -> that of a row without one: TFDS stores each field in each row."""


class TaskBuilder(tfds.core.GeneratorBasedBuilder):
    """The builder of a task; its subclasses name the task."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The fields prompt, demonstration or context, and answer."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the released data set into manual_dir: train_data and eval_data, or train.jsonl and test.jsonl."
    )
    task_name = ""
    """The name of the task in `TASKS`; empty for the common base."""
    makers: Mapping[str, Maker] | None = None
    """Split -> a function that yields its rows; None to convert the files in manual_dir."""

    @property
    def task(self) -> Task:
        """The task."""
        return TASKS[self.task_name]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        answers = {
            "text": text,
            "texts": tfds.features.Sequence(text),
            "calls": tfds.features.Sequence({"Action": text, "Action_Input": text}),
        }
        features = {
            "prompt": tfds.features.Sequence({"role": text, "content": text}),
            **dict.fromkeys(self._texts, text),
            "answer": answers[self.task.answer],
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.task.description,
            features=tfds.features.FeaturesDict(features),
            homepage=self.task.homepage,
            license=self.task.license,
            disable_shuffling=True,  # the order of the rows is that of their source
        )

    @property
    def _texts(self) -> tuple[str, ...]:
        """The fields that are texts, beside the answer."""
        return ("context" if self.task.context else "demonstration", *self.task.more)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Row]]]:
        makers = self.makers or split_rows(self.task, self._find(dl_manager))
        return {split: self._generate_examples(maker()) for split, maker in makers.items()}

    def _find(self, dl_manager: Any) -> Mapping[str, str]:
        """Return split -> source of the raw files."""
        found = sources_below(str(dl_manager.manual_dir))
        if not found:
            raise SdftError(f"{dl_manager.manual_dir} has no raw files. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        return found

    def _generate_examples(self, rows: Iterator[Row | LeftOut]) -> Iterator[tuple[int, Row]]:
        blank = {**dict.fromkeys(self._texts, ""), "answer": _EMPTY[self.task.answer]}
        for index, row in enumerate(rows):
            if not isinstance(row, LeftOut):
                yield index, blank | row


class SdftTooluse(TaskBuilder):
    """Tool use (ToolAlpaca)."""

    task_name = "tooluse"


class SdftScience(TaskBuilder):
    """Science (SciKnowEval chemistry)."""

    task_name = "science"


class SdftMedical(TaskBuilder):
    """Medical (HuatuoGPT-o1)."""

    task_name = "medical"


class SdftRule(TaskBuilder):
    """Rule internalisation; each guide is a configuration, and needs no raw files."""

    task_name = "rule"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in (*GUIDES, OWN)]  # noqa: RUF012

    def _find(self, dl_manager: Any) -> Mapping[str, str]:
        name = self.builder_config.name
        return {"train": name, "test": name} if name in GUIDES else super()._find(dl_manager)


class SdftKnowledge(TaskBuilder):
    """Knowledge; its raw files are those that `sdft prepare knowledge` writes as JSON lines."""

    task_name = "knowledge"
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "The fields prompt, demonstration, context, answer, skill and article."
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put train.jsonl and test.jsonl, as `sdft prepare knowledge` writes them, into manual_dir."
    )


_BUILDERS = {
    builder.task_name: builder for builder in (SdftTooluse, SdftScience, SdftMedical, SdftRule, SdftKnowledge)
}


def make_builder(task: str, source: str, data_dir: Path) -> TaskBuilder:
    """Return the builder of a task.

    Args:
        task: the name of the task.
        source: its source; a guide is a configuration of task rule.
        data_dir: the directory below which the builder writes.
    """
    config = (source if source in GUIDES else OWN) if task == "rule" else None
    return _BUILDERS[task](data_dir=str(data_dir), config=config)
