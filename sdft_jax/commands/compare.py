"""`sdft compare`: two evaluations of the same rows, paired row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdft_jax.evaluation.comparison import as_json, compare, comparison_rows, comparison_sentence
from sdft_jax.evaluation.comparison_page import comparison_page
from sdft_jax.files import write_errors, write_text
from sdft_jax.reporting.reporter import Reporter
from sdft_jax.reporting.stream import make_console
from sdft_jax.reporting.tables import summary_table

PAGE, NUMBERS = "comparison.html", "comparison.json"


def run(first: str, second: str, role: str = "student", out: str | None = None) -> dict[str, Any]:
    """Print the comparison of two evaluations, and return its numbers.

    Args:
        first, second: directories of evaluations, or their answers.jsonl.
        role: `student` or `teacher`.
        out: the directory to write comparison.html and comparison.json to; None to write nothing.

    Raises:
        SdftError: as in `compare`, or the files cannot be written.
    """
    comparison = compare(first, second, role)
    numbers = as_json(comparison, role)
    reporter = Reporter(make_console())
    scorer = comparison.pairs[0][0]["scorer"]
    reporter.print(summary_table(comparison_rows(comparison), f"answers of the {role}, scored by {scorer}"))
    reporter.print(comparison_sentence(comparison))
    if out:
        directory = Path(out)
        with write_errors(out, "fix this, or give another --out"):
            directory.mkdir(parents=True, exist_ok=True)
            write_text(directory / PAGE, comparison_page(comparison, role))
            write_text(directory / NUMBERS, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
        reporter.print(f"answers that changed  {directory / PAGE}", f"numbers  {directory / NUMBERS}")
    return numbers
