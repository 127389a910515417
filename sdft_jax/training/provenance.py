"""The origin of a run: sources with their numbers of rows and checksums, and versions of libraries."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config import Config
from sdft_jax.data.encoding import Dropped, Encoded
from sdft_jax.data.lazy_rows import LazyRows
from sdft_jax.data.sources import local_path
from sdft_jax.errors import SdftError
from sdft_jax.files import read_json, write_text
from sdft_jax.files.hashing import path_sha256
from sdft_jax.models.hf.model_card import versions
from sdft_jax.reporting.hardware import describe_hardware
from sdft_jax.training.inputs import Inputs

PROVENANCE = "provenance.json"
_SCHEMES = ("mini", "tfds")
_MOST_BYTES = 1 << 30
"""Maximum size of a file or directory whose checksum is computed, in bytes: it takes a second."""


def write_provenance(directory: Path, config: Config, inputs: Inputs, fingerprint: Mapping[str, str]) -> None:
    """Write the origin of a run to its directory."""
    record = {
        "sources": _sources(config, inputs, fingerprint),
        "digests": {k: x for k, x in fingerprint.items() if inputs.general or k != "the general prompts"},
        "versions": {"sdft_jax": versions()["sdft_jax"]},
        "hardware": describe_hardware(),
    }
    write_text(directory / PROVENANCE, json.dumps(record, indent=1) + "\n")


def read_provenance(output: str) -> dict[str, Any]:
    """Return the origin of the run in `output`, a directory or a bucket; {} if it has none that is intact.

    A run of an older version has none.
    """
    try:
        record = read_json(f"{output.rstrip('/')}/{PROVENANCE}", "restore it")
    except SdftError:
        return {}
    return record


def _sources(config: Config, inputs: Inputs, fingerprint: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the source of each kind of rows, by the name that reports use.

    For a large source, `rows` counts all rows, and `checked` those that were read before the first step:
    `dropped` are of these.
    """
    data, evaluation = config.data, config.eval
    sources: dict[str, dict[str, Any]] = {}

    def add(
        name: str, paths: Sequence[str | None], rows: Sequence[Encoded], dropped: Dropped, digest: str
    ) -> None:
        named = [str(path) for path in paths]
        joined = {"source": ", ".join(map(public_name, named))}
        sources[name] = {
            **(joined if len(named) > 1 else describe_source(named[0])),
            "rows": len(rows),
            **({"checked": len(rows.checked) + dropped.total} if isinstance(rows, LazyRows) else {}),
            "dropped": dropped.total,
            "digest": fingerprint.get(digest),
        }

    add("training", inputs.sources or [data.path], inputs.train, inputs.dropped, "the training rows")
    if inputs.general:
        add("general prompts", [data.general], inputs.general, inputs.general_dropped, "the general prompts")
    paths = (evaluation.path, evaluation.validation, evaluation.prior)
    evaluated = dict(zip(("new skill", "validation", "old skills"), paths, strict=True))
    for name, kept in inputs.eval_sets.items():
        add(name, [evaluated[name]], kept.encoded, kept.dropped, f"the evaluation rows ({name})")
    return sources


def describe_source(path: str) -> dict[str, Any]:
    """Return the public name of a source, its name on the Hub if it has one, and the SHA-256 of its files.

    That of a file or directory in a bucket is the SHA-256 of its local copy.
    """
    record: dict[str, Any] = {"source": public_name(path)}
    if sha256 := _sha256(path):
        record["sha256"] = sha256
    elif not _is_local(path) and path.partition(":")[0] not in _SCHEMES:
        record["hub"] = path.partition(":")[0]
    return record


def _sha256(path: str) -> str | None:
    """Return the SHA-256 of a source's files; None without local files, or if they cannot be read again."""
    try:
        place = local_path(path)
        return None if place is None else path_sha256(place, _MOST_BYTES)
    except (OSError, SdftError):  # a checksum is no reason to end a run
        return None


def public_name(path: str) -> str:
    """Return a path without the directories of this machine; names of datasets and models stay.

    >>> public_name("/home/me/rows.jsonl"), public_name("owner/name:train"), public_name("mini:blax")
    ('rows.jsonl', 'owner/name:train', 'mini:blax')
    """
    scheme, _, rest = path.partition(":")
    if scheme in _SCHEMES and not rest.startswith(("/", ".", "~")):
        return path
    return Path(os.path.abspath(path)).name if _is_local(path) else path


def _is_local(path: str) -> bool:
    """Return True for a path of this machine or a bucket, with or without a split, and False for a name."""
    found = any(os.path.exists(part) for part in (path, path.rpartition(":")[0]) if part)
    return found or path.count("/") > 1 or path.startswith(("/", ".", "~"))
