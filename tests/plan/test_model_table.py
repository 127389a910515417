"""The README's table of models."""

import re
from pathlib import Path

from sdft_jax.plan.model_table import MODELS, rows

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_the_rows_that_the_command_prints():
    assert [line for line in rows(["SmolLM3", "gpt-oss", "Qwen3.5"]) if line not in README] == []


def test_the_readme_has_every_model_of_the_table():
    names = [name for family in MODELS.values() for name in family]
    assert re.findall(r"^\| [^|]* \| ([^|]*) \| \d+\.\d B \|", README, re.M) == names
