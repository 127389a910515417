"""`sdft export`: a run's checkpoint as a Hugging Face directory, or its adapters as one of PEFT."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sdft_jax.errors import SdftError
from sdft_jax.models.hf.push import require_login, upload
from sdft_jax.reporting.reporter import process_reporter
from sdft_jax.training.export import HubNames, export


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `sdft export`."""

    run: str
    directory: str
    best: bool = False
    dtype: str | None = None
    merge: bool = False
    base: str | None = None
    """Name of the base model on the Hub."""
    push: str | None = None
    """Name on the Hub to upload to; None not to upload."""
    private: bool = False


def run(request: Request) -> None:
    """Export a run, print the checkpoint that was used, and upload the result if that is requested.

    Raises:
        SdftError: as in `export` and `push_to_hub`; a missing login is found before the export.
    """
    if request.private and not request.push:
        raise SdftError("--private is about an upload: add --push NAME, or remove it.")
    if request.push:
        require_login(request.push)
    names = HubNames(request.push, request.base)
    chosen = export(request.run, request.directory, request.best, request.dtype, request.merge, names)
    reporter = process_reporter()
    reporter.print(f"{chosen} -> {Path(request.directory)}")
    if request.push:
        reporter.print(upload(request.directory, request.push, request.private))
