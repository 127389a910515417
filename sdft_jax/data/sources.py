"""Rows of demonstrations: JSONL, Hugging Face datasets, TFDS and the mini world, as `Example`s.

Every refusal names the file, the row (the line, in JSONL), the field and the remedy.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config.settings import DataConfig
from sdft_jax.data.examples import Example, Message, where
from sdft_jax.errors import SdftError, reason

Row = Mapping[str, Any]

EMBEDDED = {"mini": "sdft_jax.mini"}
"""Prefix of `data.path` -> the package whose `read_rows(name, split)` gives the rows."""


def read_rows(path: str, split: str = "train") -> Sequence[Row]:
    """Rows of `path` by random access; those of a large dataset are read when they are asked for.

    `path` is a JSONL or Parquet file, a Hugging Face dataset directory or hub name, `tfds:NAME` or a
    prepared TFDS directory, or `mini` or `mini:SKILL`. All but files may end in `:SPLIT`, which comes
    before `split`. Raises SdftError when there is nothing to read, or no row in it.
    """
    scheme, _, name = path.partition(":")
    if scheme in EMBEDDED:
        rows: Sequence[Row] = importlib.import_module(EMBEDDED[scheme]).read_rows(name, split)
    elif scheme == "tfds":
        rows = _read_tfds(path, name, split)
    elif Path(path).is_file():
        rows = _read_file(path)
    elif not Path(path).exists() and ":" in path:
        return read_rows(*path.rsplit(":", 1))
    else:
        rows = _read_directory(path, split) if Path(path).is_dir() else _read_hub(path, split)
    if len(rows) == 0:
        raise SdftError(f"{path}: there are no rows: give a file or split with at least one.")
    return rows


def make_examples(
    rows: Sequence[Row],
    config: DataConfig,
    source: str,
    *,
    demonstration: bool = True,
    context: bool = False,
    answer: bool = False,
) -> list[Example]:
    """The first `config.limit` rows by the fields that `config` names; `source` is named in errors.

    `demonstration`, `context` and `answer` say which of them every row must have: an answer is read wherever
    there is one, the others only when they are asked for. Without `config.context`, the context is the
    demonstration. Raises SdftError for a field that is missing, empty or of the wrong type.
    """
    demonstration = demonstration or (context and config.context is None)
    told = config.context if context else None
    return [
        _example(rows[row], config, source, row, demonstration, told, answer) for row in _first(rows, config)
    ]


def make_text_examples(rows: Sequence[Row], config: DataConfig, source: str) -> list[Example]:
    """The same rows by the field `config.text` alone: nobody is asked, and the text is what to imitate.

    Raises SdftError for a text that is missing, empty or of the wrong type.
    """
    return [
        Example((), _named_text(rows[row], "text", config.text, where(source, row)), None, row, source)
        for row in _first(rows, config)
    ]


def _first(rows: Sequence[Row], config: DataConfig) -> range:
    return range(min(len(rows), config.limit or len(rows)))


def _example(
    row: Row,
    config: DataConfig,
    source: str,
    index: int,
    demonstration: bool,
    context: str | None,
    answer: bool,
) -> Example:
    place = where(source, index)
    prompt = _messages(_field(row, "prompt", config.prompt, place), config.prompt, place)
    if row.get(config.system):
        system = _text(row[config.system], config.system, place)
        if prompt[0]["role"] == "system":
            raise SdftError(
                f"{place}: both field {config.system!r} and {config.prompt!r} hold a system prompt: "
                "keep one of them."
            )
        prompt = ({"role": "system", "content": system}, *prompt)
    shown = _named_text(row, "demonstration", config.demonstration, place) if demonstration else ""
    told = None if context is None else _named_text(row, "context", context, place)
    key = _field(row, "answer", config.answer, place) if answer else row.get(config.answer)
    skill = row.get("skill")
    return Example(prompt, shown, key, index, source, told, None if skill is None else str(skill))


def _named_text(row: Row, role: str, name: str, place: str) -> str:
    return _text(_field(row, role, name, place), name, place)


def _field(row: Row, role: str, name: str, place: str) -> Any:
    if row.get(name) is None:
        known = ", ".join(map(str, row))
        raise SdftError(
            f"{place}: field {name!r} is missing (found: {known}): "
            f"add it, or name the right one as data.{role}=FIELD."
        )
    return row[name]


def _text(value: Any, name: str, place: str) -> str:
    """A text, or a list of texts joined by newlines."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise SdftError(
            f"{place}: field {name!r} is {_kind(value)}: "
            "give a string, or a list of strings to be joined by newlines."
        )
    if not value.strip():
        raise SdftError(f"{place}: field {name!r} is empty: fill it, or remove the row.")
    return value


def _messages(value: Any, name: str, place: str) -> tuple[Message, ...]:
    """Chat messages that end with the user's; a string is one user turn."""
    if isinstance(value, Mapping) and isinstance(value.get("role"), list):
        # TFDS and older datasets store a sequence of records as a record of sequences.
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        if not isinstance(value, str):
            raise SdftError(
                f"{place}: field {name!r} is {_kind(value)}: give a string or a list of chat messages."
            )
        return ({"role": "user", "content": _text(value, name, place)},)
    messages = []
    for number, turn in enumerate(value):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            raise SdftError(
                f"{place}: message {number} of field {name!r} is no chat message: write it as "
                '{"role": ..., "content": ...}.'
            )
        if not isinstance(turn.get("content"), str):
            raise SdftError(
                f"{place}: message {number} of field {name!r} has no text as its content: give a string."
            )
        # Datasets fill the keys that other turns have with None; a chat template would print them.
        messages.append({key: item for key, item in turn.items() if item is not None})
    if not messages or messages[-1]["role"] != "user":
        raise SdftError(
            f"{place}: the last message of field {name!r} is not the user's: end the prompt with theirs."
        )
    _text(messages[-1]["content"], name, place)
    return tuple(messages)


def _kind(value: Any) -> str:
    inside = {type(item).__name__ for item in value} if isinstance(value, list) else set()
    return type(value).__name__ + (f" of {' and '.join(sorted(inside))}" if inside else "")


def _read_file(path: str) -> Sequence[Row]:
    if path.endswith(".parquet"):
        import datasets

        return _attempt(path, lambda: datasets.Dataset.from_parquet(path), "give a readable Parquet file")
    data = Path(path).read_bytes().rstrip()
    return [_json_row(line, path, number) for number, line in enumerate(data.split(b"\n"))] if data else []


def _json_row(line: bytes, path: str, number: int) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        problem = str(error) if line.strip() else "it is empty"
        raise SdftError(
            f"{where(path, number)} is not valid JSON ({problem}): write one object per line, in UTF-8."
        ) from None
    if not isinstance(row, dict):
        raise SdftError(
            f"{where(path, number)} is {_kind(row)}, not an object: write one JSON object per line."
        )
    return row


def _read_directory(path: str, split: str) -> Sequence[Row]:
    if (Path(path) / "features.json").is_file():
        return _read_tfds(path, path, split)
    import datasets

    remedy = f"give a dataset directory that has the split {split!r}, or name another as data.split"
    if not any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _attempt(path, lambda: datasets.load_dataset(path, split=split), remedy)
    loaded = _attempt(path, lambda: datasets.load_from_disk(path), remedy)
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise SdftError(f"{path}: there is no split {split!r}; set data.split to one of {', '.join(loaded)}.")
    return loaded[split]


def _read_hub(path: str, split: str) -> Sequence[Row]:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.endswith((".jsonl", ".json", ".parquet")):
        raise SdftError(
            f"{path} does not exist: give a file, a directory, a dataset's name, tfds:NAME or mini."
        )
    import datasets

    remedy = (
        "there is no such file or directory here, and a dataset of that name comes from the Hugging Face "
        "hub, which needs the net: check the name, the split and the connection, or give a local path"
    )
    return _attempt(path, lambda: datasets.load_dataset(path, split=split), remedy)


def _read_tfds(path: str, name: str, split: str) -> Sequence[Row]:
    """Random access through `as_data_source`, which needs files in ArrayRecord and no TensorFlow."""
    import tensorflow_datasets as tfds

    if not Path(name).is_dir():
        # A name may carry a version of its own: toy:1.0.0, toy/config:1.0.0, toy:1.0.0:train[:50%].
        match = re.fullmatch(r"(?P<name>[^:]+(:[\d*]+\.[\d*]+\.[\d*]+)?)(:(?P<split>.+))?", name)
        if match is None:
            raise SdftError(f"{path}: write it as tfds:NAME or tfds:NAME:SPLIT.")
        name, split = match["name"], match["split"] or split

    def load() -> Sequence[Row]:
        if Path(name).is_dir():
            return tfds.builder_from_directory(name).as_data_source(split)
        return tfds.data_source(name, split=split)

    remedy = (
        "give a dataset that is prepared in ArrayRecord (file_format='array_record'; TFRecord would need "
        f"TensorFlow) and has the split {split!r}"
    )
    return _Plain(_attempt(path, load, remedy))


class _Plain(Sequence[Row]):
    """A TFDS data source whose rows are plain Python: text for bytes, lists for arrays."""

    def __init__(self, source: Sequence[Row]):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        return _plain(self._source[index])


def _plain(value: Any) -> Any:
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
            return value  # an image, say: refused where it is used as text
    return value


def _attempt(path: str, load: Callable[[], Any], remedy: str) -> Any:
    """`load()`, whose many kinds of failure become one: what is wrong, and the remedy."""
    try:
        return load()
    except Exception as error:
        raise SdftError(f"{path} cannot be read ({reason(error)}): {remedy}.") from error
