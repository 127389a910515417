"""Helpers for the tests of `sdft bench`."""

import json
from pathlib import Path

from sdft_jax import cli
from sdft_jax.studies.bench.models import write_model


def small_model(factory) -> Path:
    """Write a random model of 0.2M parameters with pytest's `tmp_path_factory`, and return its directory."""
    directory = factory.mktemp("bench") / "model"
    write_model("0.2M", directory)
    return directory


def run_bench(name, output, *options):
    """Run `sdft bench NAME`, require that it succeeds, and return the contents of its JSON file."""
    assert cli.main(["bench", name, *options, "--output", str(output)]) == 0
    return json.loads((output / f"{name}.json").read_text())
