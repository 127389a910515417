"""Readers of data sources: JSONL and Parquet files, Hugging Face datasets, TFDS and built-in tasks.

Every error message names the source, the row (in JSONL its line), the field and the remedy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config.settings import DataConfig
from sdft_jax.data.examples import Example, Message, location
from sdft_jax.errors import SdftError, reason
from sdft_jax.files import parse_json, read_bytes, regular_size

Row = Mapping[str, Any]

EMBEDDED = {"mini": "sdft_jax.mini"}
"""Prefix of `data.path` -> the package whose `read_rows(name, split)` returns the rows."""


def read_rows(path: str, split: str = "train") -> Sequence[Row]:
    """Return the rows of `path` with random access; those of a large dataset are read on access.

    `path` is a JSONL or Parquet file, a Hugging Face dataset directory or Hub name, `tfds:NAME` or a prepared
    TFDS directory, or `mini` or `mini:SKILL`. All except files may end in `:SPLIT`, which overrides `split`.

    Raises:
        SdftError: the source cannot be read, or has no rows.
    """
    scheme, _, name = path.partition(":")
    if scheme in EMBEDDED:
        rows: Sequence[Row] = importlib.import_module(EMBEDDED[scheme]).read_rows(name, split)
    elif scheme == "tfds":
        rows = _read_tfds(path, name, split)
    elif os.path.exists(path) and not os.path.isdir(path):
        rows = _read_file(path)
    elif "://" in path:
        raise SdftError(
            f"{path} is a URL, and rows are read from a local disk or the Hugging Face Hub: copy the file "
            "to the local disk, and give its path."
        )
    elif not os.path.exists(path) and ":" in path:
        return read_rows(*path.rsplit(":", 1))
    else:
        rows = _read_directory(path, split) if Path(path).is_dir() else _read_hub(path, split)
    if len(rows) == 0:
        raise SdftError(f"{path}: there are no rows: give a file or split with at least one.")
    return rows


def load_examples(
    path: str,
    config: DataConfig,
    *,
    demonstration: bool = True,
    context: bool = False,
    answer: bool = False,
) -> list[Example]:
    """Return `make_examples` of the rows of `path`, in the split `config.split`."""
    rows = read_rows(path, config.split)
    return make_examples(rows, config, path, demonstration=demonstration, context=context, answer=answer)


def make_examples(
    rows: Sequence[Row],
    config: DataConfig,
    source: str,
    *,
    demonstration: bool = True,
    context: bool = False,
    answer: bool = False,
) -> list[Example]:
    """Return the first `config.limit` rows, read from the fields that `config` names.

    Args:
        rows: the rows of a source.
        config: field names and the maximum number of rows.
        source: the path of the rows, for error messages.
        demonstration: True to require and read the demonstration.
        context: True to require and read the teacher's context; without `config.context`, that is the
            demonstration.
        answer: True to require the answer; an answer is read from each row that has one.

    Raises:
        SdftError: a field is missing, empty or of the wrong type.
    """
    required = _RequiredFields(
        demonstration=demonstration or (context and config.context is None),
        context=config.context if context else None,
        answer=answer,
    )
    rows = _only(rows, _names(config, required))
    return [
        _example(_row(rows, index, source), index, source, config, required) for index in _first(rows, config)
    ]


def make_text_examples(rows: Sequence[Row], config: DataConfig, source: str) -> list[Example]:
    """Return the first `config.limit` rows without a prompt, with field `config.text` as the text to imitate.

    Raises:
        SdftError: a text is missing, empty or of the wrong type.
    """
    rows = _only(rows, {config.text})
    return [
        Example((), _named_text(_row(rows, row, source), "text", config.text, place), None, row, source)
        for row, place in ((row, location(source, row)) for row in _first(rows, config))
    ]


@dataclasses.dataclass(frozen=True)
class _RequiredFields:
    """The fields that every row must have, in addition to the prompt."""

    demonstration: bool
    context: str | None
    """Name of the context's field; None if it is not required."""
    answer: bool


def _names(config: DataConfig, required: _RequiredFields) -> set[str | None]:
    """Return the names of the fields that `_example` reads."""
    demonstration = config.demonstration if required.demonstration else None
    return {config.prompt, config.system, config.answer, "skill", demonstration, required.context}


def _row(rows: Sequence[Row], index: int, source: str) -> Row:
    """Return a row. Raises SdftError if it cannot be decoded."""
    return _attempt(location(source, index), lambda: rows[index], "repair or remove the row")


def _first(rows: Sequence[Row], config: DataConfig) -> range:
    return range(min(len(rows), config.limit or len(rows)))


def _example(row: Row, index: int, source: str, config: DataConfig, required: _RequiredFields) -> Example:
    place = location(source, index)
    prompt = _messages(_field(row, "prompt", config.prompt, place), config.prompt, place)
    if row.get(config.system):
        system = _text(row[config.system], config.system, place)
        if prompt[0]["role"] == "system":
            raise SdftError(
                f"{place}: fields {config.system!r} and {config.prompt!r} both contain a system prompt: "
                "remove one of them."
            )
        prompt = ({"role": "system", "content": system}, *prompt)
    demonstration, context = "", None
    if required.demonstration:
        demonstration = _named_text(row, "demonstration", config.demonstration, place)
    if required.context is not None:
        context = _named_text(row, "context", required.context, place)
    answer = _number(row.get(config.answer))
    if required.answer:
        _field({**row, config.answer: answer}, "answer", config.answer, place)
    skill = row.get("skill")
    return Example(
        prompt, demonstration, answer, index, source, context, None if skill is None else str(skill)
    )


def _number(answer: Any) -> Any:
    """Return an answer, with None for NaN and an integer for a float that equals one.

    A column of integers in which one is missing is a column of floats in Parquet.
    """
    if not isinstance(answer, float):
        return answer
    if math.isnan(answer):
        return None
    return int(answer) if answer.is_integer() else answer


def _named_text(row: Row, role: str, name: str, place: str) -> str:
    return _text(_field(row, role, name, place), name, place)


def _field(row: Row, role: str, name: str, place: str) -> Any:
    if row.get(name) is None:
        fields = ", ".join(map(str, row))
        raise SdftError(
            f"{place}: field {name!r} is missing (found: {fields}): "
            f"add it, or name another field with data.{role}=FIELD."
        )
    return row[name]


def _text(value: Any, name: str, place: str) -> str:
    """Return a string, or a list of strings joined by newlines."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise SdftError(
            f"{place}: field {name!r} has type {_kind(value)}: "
            "give a string, or a list of strings, which are joined by newlines."
        )
    if not value.strip():
        raise SdftError(f"{place}: field {name!r} is empty: fill it, or remove the row.")
    return value


def _messages(value: Any, name: str, place: str) -> tuple[Message, ...]:
    """Return chat messages that end with a user message; a string is one user turn."""
    if isinstance(value, Mapping) and isinstance(value.get("role"), list):
        # TFDS and older datasets store a sequence of records as a record of sequences.
        columns = list(value.values())
        if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            raise SdftError(
                f"{place}: the parts of field {name!r} are lists of unequal length: give each message all "
                "parts."
            )
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*columns, strict=True)]
    if not isinstance(value, list):
        if not isinstance(value, str):
            raise SdftError(
                f"{place}: field {name!r} has type {_kind(value)}: give a string or a list of chat messages."
            )
        return ({"role": "user", "content": _text(value, name, place)},)
    messages = []
    for number, turn in enumerate(value):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            raise SdftError(
                f"{place}: message {number} of field {name!r} is not a chat message: write it as "
                '{"role": ..., "content": ...}.'
            )
        if not isinstance(turn.get("content"), str):
            raise SdftError(
                f"{place}: the content of message {number} of field {name!r} is not a string: give a string."
            )
        # Datasets add the keys of other turns with the value None, which a chat template would print.
        messages.append({key: item for key, item in turn.items() if item is not None})
    if not messages or messages[-1]["role"] != "user":
        raise SdftError(
            f"{place}: the last message of field {name!r} is not a user message: end the prompt with one."
        )
    _text(messages[-1]["content"], name, place)
    return tuple(messages)


def _kind(value: Any) -> str:
    item_types = {type(item).__name__ for item in value} if isinstance(value, list) else set()
    return type(value).__name__ + (f" of {' and '.join(sorted(item_types))}" if item_types else "")


def _read_file(path: str) -> Sequence[Row]:
    if path.endswith(".parquet"):
        import datasets

        regular_size(path, "give a Parquet file")
        with _literal(path) as name:
            rows = _attempt(path, lambda: datasets.Dataset.from_parquet(name), "give a readable Parquet file")
        return _arrow_rows(rows)
    data = read_bytes(path, "give a file of rows", limit=1 << 40).rstrip()
    return [_json_row(line, path, number) for number, line in enumerate(data.split(b"\n"))] if data else []


def _json_row(line: bytes, path: str, number: int) -> Row:
    row = parse_json(line, location(path, number), "write one object per line, in UTF-8")
    if not isinstance(row, dict):
        raise SdftError(
            f"{location(path, number)} has type {_kind(row)}, not object: write one JSON object per line."
        )
    return row


def _read_directory(path: str, split: str) -> Sequence[Row]:
    if (Path(path) / "features.json").is_file():
        return _read_tfds(path, path, split)
    import datasets

    for file in Path(path).rglob("*"):
        if not file.is_dir():
            regular_size(file, "remove it")
    remedy = f"give a dataset directory with the split {split!r}, or set data.split to another one"
    if not any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json")):
        with _literal(path) as name:
            return _arrow_rows(
                _attempt(path, lambda: _intact(datasets.load_dataset(name, split=split)), remedy)
            )
    loaded = _attempt(path, lambda: datasets.load_from_disk(path), remedy)
    # a single data set often has no name; the default split then means all of it
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    if isinstance(loaded, datasets.Dataset) and split == DataConfig().split:
        chosen = loaded
    elif split in splits:
        chosen = splits[split]
    else:
        raise SdftError(f"{path}: there is no split {split!r}; set data.split to one of {', '.join(splits)}.")
    return _arrow_rows(_attempt(path, lambda: _intact(chosen), remedy))


def _intact(source: Any) -> Any:
    """Return a data set after a check of its table: reading rows of a damaged one would end the process."""
    source.data.validate(full=True)
    return source


@contextlib.contextmanager
def _literal(path: str) -> Iterator[str]:
    """Yield a path to the same file or directory that datasets does not read as a glob pattern."""
    if not set(path) & set("*?[]{}!"):
        yield path
        return
    source = Path(path)
    with tempfile.TemporaryDirectory() as directory:
        # datasets resolves a link to a directory, but not links to files
        files = [file for file in source.rglob("*") if file.is_file()] if source.is_dir() else [source]
        for file in files:
            name = str(file.relative_to(source)) if source.is_dir() else file.name
            link = Path(directory) / re.sub(r"[*?\[\]{}!]", "_", name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.absolute())
        yield directory if source.is_dir() else str(link)


def _arrow_rows(source: Any) -> Sequence[Row]:
    """Return the rows of a dataset without the keys that only other rows have.

    Arrow gives every record of a column the keys of all its records, with None as the value.
    """
    source = source.with_format(None)  # a saved dataset may ask for tensors, or hide columns
    return _ConvertedRows(
        source,
        lambda row: {key: _without_nulls(value) for key, value in row.items()},
        lambda: source.column_names,
        source.select_columns,
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _read_hub(path: str, split: str) -> Sequence[Row]:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.endswith((".jsonl", ".json", ".parquet")):
        raise SdftError(
            f"{path} does not exist: give a file, a directory, the name of a dataset, tfds:NAME or mini."
        )
    import datasets

    remedy = (
        "it is not a local file or directory, and a dataset is read from the Hugging Face Hub, which needs a "
        "network connection: check the name, the split and the connection, or give a local path"
    )
    return _arrow_rows(_attempt(path, lambda: datasets.load_dataset(path, split=split), remedy))


def _read_tfds(path: str, name: str, split: str) -> Sequence[Row]:
    """Return rows with random access by `as_data_source`: it requires ArrayRecord files, not TensorFlow."""
    import tensorflow_datasets as tfds

    if not Path(name).is_dir():
        # A name may include a version: toy:1.0.0, toy/config:1.0.0, toy:1.0.0:train[:50%].
        match = re.fullmatch(r"(?P<name>[^:]+(:[\d*]+\.[\d*]+\.[\d*]+)?)(:(?P<split>.+))?", name)
        if match is None:
            raise SdftError(f"{path} is not a TFDS dataset: write it as tfds:NAME or tfds:NAME:SPLIT.")
        name, split = match["name"], match["split"] or split

    def load() -> Sequence[Row]:
        if Path(name).is_dir():
            return tfds.builder_from_directory(name).as_data_source(split)
        return tfds.data_source(name, split=split)

    remedy = (
        "give a dataset that is prepared as ArrayRecord (file_format='array_record'; TFRecord requires "
        f"TensorFlow) and has the split {split!r}"
    )
    source: Any = _attempt(path, load, remedy)

    def select(names: list[str]) -> Sequence[Row]:
        # a data source ignores PartialDecoding, and nested features have no common decoder
        nested = (tfds.features.FeaturesDict, tfds.features.Sequence)
        others = {
            name: tfds.decode.SkipDecoding()
            for name, feature in source.dataset_info.features.items()
            if name not in names and not isinstance(feature, nested)
        }
        return dataclasses.replace(source, decoders=others)

    return _ConvertedRows(source, _plain, lambda: list(source.dataset_info.features), select)


class _ConvertedRows(Sequence[Row]):
    """Rows of a dataset, which are decoded and converted when they are read.

    Args:
        source: the rows of the dataset.
        convert: converts a row.
        columns: returns the names of the columns.
        select: (names of columns) -> the rows with these columns only.
    """

    def __init__(
        self,
        source: Sequence[Row],
        convert: Callable[[Row], Row],
        columns: Callable[[], list[str]],
        select: Callable[[list[str]], Sequence[Row]],
    ):
        self._source, self._convert, self._columns, self._select = source, convert, columns, select

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        return self._convert(self._source[index])

    def only(self, names: Container[str | None]) -> Sequence[Row]:
        """Return rows that have None in all other columns."""
        columns = self._columns()
        chosen, empty = [name for name in columns if name in names], dict.fromkeys(columns)
        if not chosen:
            return [empty] * len(self)
        return _ConvertedRows(
            self._select(chosen), lambda row: {**empty, **self._convert(row)}, self._columns, self._select
        )


def _only(rows: Sequence[Row], names: Container[str | None]) -> Sequence[Row]:
    """Return rows of which only these columns are decoded: others may contain images or broken files."""
    return rows.only(names) if isinstance(rows, _ConvertedRows) else rows


def _plain(value: Any) -> Any:
    """Return plain Python objects: strings for bytes, lists for arrays."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value  # for example an image; it is an error only if it is used as text
    return value


def _attempt(path: str, load: Callable[[], Any], remedy: str) -> Any:
    """Return `load()`; any exception becomes an SdftError with its reason and the remedy."""
    try:
        return load()
    except Exception as error:
        raise SdftError(f"{path} cannot be read ({reason(error)}): {remedy}.") from error
