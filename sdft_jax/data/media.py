"""Images, videos and sounds in rows: a model of texts would be trained on the rest of the row alone.

A column is recognized by its type (`datasets` and TFDS), and every field also by the names that such data
sets use. A row in which it is empty is a row of texts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from sdft_jax.errors import SdftError

_KINDS = {"image": "an image", "video": "a video", "audio": "a sound"}
_NAME = re.compile(
    r"(image|img|photo|picture|video|audio)s?(_(byte|file|filename|path|url)s?)?|pixel_values", re.IGNORECASE
)
_INLINE = re.compile(r"data:(image|video|audio)/")
"""The beginning of a file within a text (RFC 2397)."""
_FILE = {"bytes", "path"}
"""The fields in which `datasets` stores an image, a video or a sound."""


def media_columns(features: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns that may contain an image, a video or a sound, each with which of them.

    Args:
        features: column -> its type in `datasets` or in TFDS.
    """
    kinds = {name: _kind_of_type(feature) for name, feature in features.items()}
    return {name: kind for name, kind in kinds.items() if kind}


@functools.lru_cache(maxsize=1024)
def named_media(name: str) -> str | None:
    """Return the kind of media that a field of this name contains by convention: `image_url` "an image"."""
    match = _NAME.fullmatch(name)
    return _KINDS.get((match[1] or "").lower(), _KINDS["image"]) if match else None


def has_file(value: Any) -> bool:
    """Return True if a value of a column of media, not decoded, contains at least one file."""
    if isinstance(value, Mapping):
        return any(value.values()) if set(value) <= _FILE else any(map(has_file, value.values()))
    return any(map(has_file, value)) if isinstance(value, list) else False


def refuse_media(
    fields: Mapping[str, Any],
    place: str,
    columns: Mapping[str, str] = MappingProxyType({}),
    texts: Container[str | None] = (),
) -> None:
    """Raise SdftError if a field contains an image, a video or a sound.

    Args:
        fields: the fields of a row, a message or a part of one.
        place: the source and the row, for the error message.
        columns: the columns that contain them by their type.
        texts: the names of fields that are read as texts.
    """
    for name, value in fields.items():
        kind = columns.get(name) or named_media(name)
        if isinstance(value, str) and (inline := _INLINE.match(value)):
            kind = _KINDS[inline[1]]
        if kind and name not in texts and _is_filled(value):
            raise SdftError(
                f"{place}: field {name!r} contains {kind}, and models are trained on text only: remove the "
                "field, or the row, or give a data set of texts."
            )


def _kind_of_type(feature: Any) -> str | None:
    """Return the kind of media in a type of `datasets` or TFDS, or in the types in it."""
    for base in type(feature).__mro__:
        if kind := _KINDS.get(base.__name__.lower()):
            return kind
    if isinstance(feature, Mapping) and set(feature) == _FILE:
        return "a file"
    parts: Iterable[Any] = ()
    if isinstance(feature, list):
        parts = feature
    elif hasattr(feature, "feature"):  # a sequence
        parts = [feature.feature]
    elif callable(getattr(feature, "values", None)):  # a record
        parts = feature.values()
    return next(filter(None, map(_kind_of_type, parts)), None)


def _is_filled(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_is_filled, value.values()))
    return any(map(_is_filled, value)) if isinstance(value, list) else bool(value)
