"""Readers of data sources: JSONL and Parquet files, Hugging Face datasets, TFDS and built-in tasks.

A row is read when it is accessed; the README beside this file has the formats and their costs. Every error
message names the source, the row (in JSONL its line), the field and the remedy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdft_jax.config.settings import DataConfig
from sdft_jax.data.examples import Example, Message, location
from sdft_jax.data.indexed import Indexed
from sdft_jax.data.media import has_file, media_columns, named_media, refuse_media
from sdft_jax.data.messages import as_records, kind_of, read_messages, read_text
from sdft_jax.data.traces import demonstrated_turns, read_tools, read_trace
from sdft_jax.errors import SdftError, reason
from sdft_jax.files import Lines, local_copy, parse_json, regular_size

Row = Mapping[str, Any]

_FIELD_SETTINGS = (
    "answer",
    "context",
    "demonstration",
    "demonstrations",
    "messages",
    "prompt",
    "system",
    "text",
    "tools",
)
"""The settings of `data` that name a field of texts."""

EMBEDDED = {"mini": "sdft_jax.mini"}
"""Prefix of `data.path` -> the package whose `read_rows(name, split)` returns the rows."""


def read_rows(path: str, split: str = "train") -> Sequence[Row]:
    """Return the rows of `path` with random access; a row is read on access.

    `path` is a JSONL file (plain, .gz or .zst), a Parquet file, a Hugging Face dataset directory or Hub name,
    a directory of Parquet or JSONL files, `tfds:NAME` or a prepared TFDS directory, or `mini` or
    `mini:SKILL`. Files and directories may be in a bucket. All except files may end in `:SPLIT`, which
    overrides `split`.

    Raises:
        SdftError: the source cannot be read, or has no rows.
    """
    scheme, _, name = path.partition(":")
    if scheme in EMBEDDED:
        rows: Sequence[Row] = importlib.import_module(EMBEDDED[scheme]).read_rows(name, split)
    elif scheme == "tfds":
        rows = _read_tfds(path, name, split)
    elif os.path.exists(path):
        rows = _read_local(path, path, split)
    elif "://" in path:
        rows = _read_remote(path, split)
    elif ":" in path:
        return read_rows(*path.rsplit(":", 1))
    else:
        rows = _read_hub(path, split)
    if len(rows) == 0:
        raise SdftError(f"{path}: there are no rows: give a file or split with at least one.")
    return rows


def local_path(path: str) -> Path | None:
    """Return the file or directory from which `read_rows` reads a source, or its copy if it is in a bucket.

    None if the rows have another origin, such as the name of a dataset.

    Raises:
        SdftError: the bucket cannot be read.
    """
    scheme, _, name = path.partition(":")
    if scheme in EMBEDDED or path.startswith(("http://", "https://")):
        return None
    if scheme == "tfds":
        return next((Path(x) for x in (name, name.rpartition(":")[0]) if x and Path(x).is_dir()), None)
    if os.path.exists(path):
        return Path(path)
    if "://" in path:
        return next((copy for source, _ in _readings(path, "") if (copy := local_copy(source))), None)
    return local_path(path.rpartition(":")[0]) if ":" in path else None


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
    """Return `index_examples` as a list: every row is read and validated now."""
    return list(
        index_examples(rows, config, source, demonstration=demonstration, context=context, answer=answer)
    )


def index_examples(
    rows: Sequence[Row],
    config: DataConfig,
    source: str,
    *,
    demonstration: bool = True,
    context: bool = False,
    answer: bool = False,
) -> Sequence[Example]:
    """Return the first `config.limit` rows, each read on access from the fields that `config` names.

    Args:
        rows: the rows of a source.
        config: field names and the maximum number of rows.
        source: the path of the rows, for error messages.
        demonstration: True to require and read the demonstration.
        context: True to require and read the teacher's context; without `config.context`, that is the
            demonstration.
        answer: True to require the answer; an answer is read from each row that has one.

    Raises:
        SdftError: on access, if a field is missing, empty or of the wrong type.
    """
    required = _RequiredFields(
        demonstration=demonstration or (context and config.context is None),
        context=config.context if context else None,
        answer=answer,
    )
    read, count = _reader(rows, _names(config, required), config, source), _count(rows, config)

    if config.messages is not None:
        return _index_turns(read, count, config, source, required)

    def example(index: int) -> Example:
        return _example(read(index), index, source, config, required)

    return Indexed(count, example)


def make_text_examples(rows: Sequence[Row], config: DataConfig, source: str) -> list[Example]:
    """Return `index_text_examples` as a list: every row is read and validated now."""
    return list(index_text_examples(rows, config, source))


def index_text_examples(rows: Sequence[Row], config: DataConfig, source: str) -> Sequence[Example]:
    """Return the first `config.limit` rows without a prompt, with field `config.text` as the text to imitate.

    Raises:
        SdftError: on access, if a text is missing, empty or of the wrong type.
    """
    read = _reader(rows, {config.text}, config, source)

    def example(index: int) -> Example:
        text = _named_text(read(index), "text", config.text, location(source, index))
        return Example((), text, None, index, source)

    return Indexed(_count(rows, config), example)


@dataclasses.dataclass(frozen=True)
class _RequiredFields:
    """The fields that every row must have, in addition to the prompt."""

    demonstration: bool
    context: str | None
    """Name of the context's field; None if it is not required."""
    answer: bool


def _names(config: DataConfig, required: _RequiredFields) -> set[str | None]:
    """Return the names of the fields that `_example` reads."""
    demonstrations = {config.demonstration, config.demonstrations} if required.demonstration else set()
    trace = {config.messages, config.tools} if config.messages else set()
    texts = {config.prompt, config.system, config.answer, "skill", required.context}
    return demonstrations | trace | texts


def _reader(
    rows: Sequence[Row], names: Container[str | None], config: DataConfig, source: str
) -> Callable[[int], Row]:
    """Return a function that returns a row, of which only the fields `names` are read.

    The function raises SdftError if the row cannot be decoded, or a field that no setting names contains an
    image, a video or a sound. Such a column is not decoded: its files may be broken.
    """
    chosen, media = (rows.only(names), rows.media) if isinstance(rows, _ConvertedRows) else (rows, {})
    named = {getattr(config, setting) for setting in _FIELD_SETTINGS}

    def read(index: int) -> Row:
        place = location(source, index)
        row = _attempt(place, lambda: chosen[index], "repair or remove the row")
        refuse_media(row, place, media, named)
        return row

    return read


def _count(rows: Sequence[Row], config: DataConfig) -> int:
    return min(len(rows), config.limit or len(rows))


def _index_turns(
    read: Callable[[int], Row], count: int, config: DataConfig, source: str, required: _RequiredFields
) -> Sequence[Example]:
    """Return the examples of rows that may be traces; all rows are read once, to count their turns."""

    @functools.lru_cache(maxsize=2)  # the turns of a row are mostly read in order
    def examples(index: int) -> list[Example]:
        row = read(index)
        if row.get(str(config.messages)) is None and row.get(config.prompt) is not None:
            return [_example(row, index, source, config, required)]
        return _turns(row, index, source, config, required)

    counts = np.fromiter((len(examples(index)) for index in range(count)), np.int64)
    ends = np.cumsum(counts)

    def example(place: int) -> Example:
        index = int(np.searchsorted(ends, place, side="right"))
        return examples(index)[place - int(ends[index])]

    return Indexed(int(ends[-1]), example)


def _example(row: Row, index: int, source: str, config: DataConfig, required: _RequiredFields) -> Example:
    place = location(source, index)
    prompt = _messages(_field(row, "prompt", config.prompt, place), config.prompt, place)
    prompt = (*_system(row, prompt, config, config.prompt, place), *prompt)
    first, *others = _demonstrations(row, config, place) if required.demonstration else ("",)
    context = None if required.context is None else _named_text(row, "context", required.context, place)
    answer = _number(row.get(config.answer))
    if required.answer:
        _field({**row, config.answer: answer}, "answer", config.answer, place)
    return Example(prompt, first, answer, index, source, context, _skill(row), tuple(others))


def _turns(row: Row, index: int, source: str, config: DataConfig, required: _RequiredFields) -> list[Example]:
    """Return an example for each demonstrated turn of a trace; the last one has the row's answer, if any."""
    place, name = location(source, index), str(config.messages)
    messages = read_trace(_field(row, "messages", name, place), name, place)
    turns = demonstrated_turns(messages, name, place)
    tools = () if config.tools is None else read_tools(row.get(config.tools), messages, config.tools, place)
    system = _system(row, messages, config, name, place)
    context = None if required.context is None else _named_text(row, "context", required.context, place)
    first = Example((), "", None, index, source, context, _skill(row), tools=tools)
    return [
        dataclasses.replace(
            first,
            prompt=(*system, *messages[:turn]),
            demonstration=messages[turn],
            answer=_number(row.get(config.answer)) if turn == turns[-1] else None,
            turn=turn,
        )
        for turn in turns
    ]


def _system(
    row: Row, messages: Sequence[Message], config: DataConfig, name: str, place: str
) -> tuple[Message, ...]:
    """Return the message with the row's system prompt; no message if the field is empty."""
    if not row.get(config.system):
        return ()
    if messages[0]["role"] == "system":
        raise SdftError(
            f"{place}: fields {config.system!r} and {name!r} both contain a system prompt: "
            "remove one of them."
        )
    return ({"role": "system", "content": read_text(row[config.system], config.system, place)},)


def _skill(row: Row) -> str | None:
    skill = row.get("skill")
    return None if skill is None else str(skill)


def _demonstrations(row: Row, config: DataConfig, place: str) -> tuple[str, ...]:
    """Return the demonstrations of a row, one or more."""
    name = config.demonstrations
    if name is None or (row.get(name) is None and row.get(config.demonstration) is not None):
        return (_named_text(row, "demonstration", config.demonstration, place),)
    value = _field(row, "demonstrations", name, place)
    if not isinstance(value, list) or not value:
        raise SdftError(
            f"{place}: field {name!r} has type {kind_of(value)}: give a list of one or more demonstrations, "
            "or name a field with a single one with data.demonstration=FIELD and data.demonstrations=null."
        )
    return tuple(read_text(item, f"{name}[{number}]", place) for number, item in enumerate(value))


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
    return read_text(_field(row, role, name, place), name, place)


def _field(row: Row, role: str, name: str, place: str) -> Any:
    if row.get(name) is None:
        fields = ", ".join(map(str, row))
        raise SdftError(
            f"{place}: field {name!r} is missing (found: {fields}): "
            f"add it, or name another field with data.{role}=FIELD."
        )
    return row[name]


def _messages(value: Any, name: str, place: str) -> tuple[Message, ...]:
    """Return chat messages that end with a user message; a string is one user turn."""
    if isinstance(value, str):
        return ({"role": "user", "content": read_text(value, name, place)},)
    messages = read_messages(value, name, place)
    if not messages or messages[-1]["role"] != "user":
        raise SdftError(
            f"{place}: the last message of field {name!r} is not a user message: end the prompt with one."
        )
    read_text(messages[-1]["content"], name, place)
    return tuple(messages)


def _read_remote(path: str, split: str) -> Sequence[Row]:
    """Return the rows of a file or directory in a bucket, which may end in `:SPLIT`."""
    if path.startswith(("http://", "https://")):
        raise SdftError(
            f"{path} is a web address: download the file, and give its path, or the name of a dataset on the "
            "Hugging Face Hub."
        )
    for source, part in _readings(path, split):
        if copy := local_copy(source):
            return _read_local(str(copy), source, part)
    raise SdftError(f"{path} does not exist: give a file or a directory in the bucket.")


def _readings(path: str, split: str) -> list[tuple[str, str]]:
    """Return the possible (source, split) of an address that may end in `:SPLIT`."""
    shorter, _, other = path.rpartition(":")
    return [(path, split)] + [(shorter, other)] * ("://" in shorter and "/" not in other)


def _read_local(path: str, source: str, split: str) -> Sequence[Row]:
    """Return the rows of a file or directory on the local disk; `source` is its name in messages."""
    return _read_directory(path, source, split) if Path(path).is_dir() else _read_file(path, source)


def _read_file(path: str, source: str) -> Sequence[Row]:
    if path.endswith(".parquet"):
        import datasets

        regular_size(path, "give a Parquet file")
        remedy = "give a readable Parquet file"
        with _literal(path) as name:
            rows = _attempt(source, lambda: datasets.Dataset.from_parquet(name), remedy)
        return _arrow_rows(rows)
    lines = Lines(path, source, "give a file of rows")
    return Indexed(len(lines), lambda number: _json_row(lines[number], source, number))


def _json_row(line: bytes, path: str, number: int) -> Row:
    row = parse_json(line, location(path, number), "write one object per line, in UTF-8")
    if not isinstance(row, dict):
        raise SdftError(
            f"{location(path, number)} has type {kind_of(row)}, not object: write one JSON object per line."
        )
    return row


def _read_directory(path: str, source: str, split: str) -> Sequence[Row]:
    if (Path(path) / "features.json").is_file():
        return _read_tfds(source, path, split)
    import datasets

    for file in Path(path).rglob("*"):
        if not file.is_dir():
            regular_size(file, "remove it")
    remedy = f"give a dataset directory with the split {split!r}, or set data.split to another one"
    if not any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json")):
        with _literal(path) as name:
            return _arrow_rows(
                _attempt(source, lambda: _intact(datasets.load_dataset(name, split=split)), remedy)
            )
    loaded = _attempt(source, lambda: datasets.load_from_disk(path), remedy)
    # a single data set often has no name; the default split then means all of it
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    if isinstance(loaded, datasets.Dataset) and split == DataConfig().split:
        chosen = loaded
    elif split in splits:
        chosen = splits[split]
    else:
        raise SdftError(
            f"{source}: there is no split {split!r}; set data.split to one of {', '.join(splits)}."
        )
    return _arrow_rows(_attempt(source, lambda: _intact(chosen), remedy))


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
    media = media_columns(source.features)

    def select(names: list[str]) -> Sequence[Row]:
        decoded, others = source.select_columns(names), [name for name in media if name not in names]
        if not others:
            return decoded
        stored = source.with_format("arrow").select_columns(others)

        def row(index: int) -> Row:
            (files,) = stored[index].to_pylist()
            return decoded[index] | {name: value for name, value in files.items() if has_file(value)}

        return Indexed(len(source), row)

    return _ConvertedRows(
        source,
        lambda row: {key: _without_nulls(value) for key, value in row.items()},
        lambda: source.column_names,
        select,
        media,
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


_FILES = (".jsonl", ".json", ".parquet", ".gz", ".zst")
"""Ends of the names of files, which are no names of datasets."""


def _read_hub(path: str, split: str) -> Sequence[Row]:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.endswith(_FILES):
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
        f"give a dataset with the split {split!r} that is prepared as ArrayRecord, as by `tfds build "
        "--file_format=array_record`, since TFRecord files require TensorFlow"
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

    records = {
        name
        for name, feature in source.dataset_info.features.items()
        if isinstance(feature, tfds.features.Sequence)
        and isinstance(feature.feature, tfds.features.FeaturesDict)
    }

    def convert(row: Row) -> Row:
        return {name: as_records(value) if name in records else value for name, value in _plain(row).items()}

    features = source.dataset_info.features
    return _ConvertedRows(source, convert, lambda: list(features), select, media_columns(features))


class _ConvertedRows(Sequence[Row]):
    """Rows of a dataset, which are decoded and converted when they are read.

    Args:
        source: the rows of the dataset.
        convert: converts a row.
        columns: returns the names of the columns.
        select: (names of columns) -> the rows with these columns, and with those of media that are not empty,
            not decoded.
        media: the columns with images, videos or sounds, each with which of them.
    """

    def __init__(
        self,
        source: Sequence[Row],
        convert: Callable[[Row], Row],
        columns: Callable[[], list[str]],
        select: Callable[[list[str]], Sequence[Row]],
        media: Mapping[str, str],
    ):
        self._source, self._convert, self._columns, self._select = source, convert, columns, select
        self.media = media

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        return self._convert(self._source[index])

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))  # a data source of TFDS does not raise IndexError

    def only(self, names: Container[str | None]) -> Sequence[Row]:
        """Return rows in which other columns are not decoded: they are None, unless they are media."""
        columns = self._columns()
        named = {name for name in columns if named_media(name)} - set(self.media)
        chosen = [name for name in columns if name in names or name in named]
        empty = dict.fromkeys(columns)
        if not chosen:
            return [empty] * len(self)

        def convert(row: Row) -> Row:
            return {**empty, **self._convert(row)}

        return _ConvertedRows(self._select(chosen), convert, self._columns, self._select, self.media)


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
    """Return `load()`; any other exception becomes an SdftError with its reason and the remedy."""
    try:
        return load()
    except SdftError:
        raise
    except Exception as error:
        raise SdftError(f"{path} cannot be read ({reason(error)}): {remedy}.") from error
