"""Notebooks run from top to bottom, and what they print is still true."""

import contextlib
import io
import json
from pathlib import Path

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run(name):
    """Standard output of every code cell."""
    namespace, printed = {}, []
    for cell in json.loads((NOTEBOOKS / name).read_text())["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec("".join(cell["source"]), namespace)
            printed.append(out.getvalue())
    return printed


def test_sdft_by_hand():
    *_, last = run("sdft_by_hand.ipynb")
    answers = last.splitlines()[-4:]
    assert sum("<think> reverse </think>" in answer for answer in answers) >= 3
