"""Notebooks run from top to bottom, and what they print is still true."""

import contextlib
import io
import json
from pathlib import Path

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run(name, **parameters):
    """Standard output of every code cell; `parameters` replace those of the cell that is tagged so."""
    namespace, printed = {}, []
    for cell in json.loads((NOTEBOOKS / name).read_text())["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec("".join(cell["source"]), namespace)
            printed.append(out.getvalue())
            if "parameters" in cell["metadata"].get("tags", ()):
                assert parameters.keys() <= namespace.keys()
                namespace |= parameters
    return printed


def test_sdft_by_hand():
    *_, last = run("sdft_by_hand.ipynb")
    answers = last.splitlines()[-4:]
    assert sum("<think> reverse </think>" in answer for answer in answers) >= 3


def test_quickstart(tmp_path, monkeypatch):
    """With fewer steps, and the one experiment that trains nothing."""
    shown = []
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: shown.append(True))
    printed = run("quickstart.ipynb", STEPS=4, EVALUATED=16, EXPERIMENT="cost", OUTPUT=str(tmp_path))
    assert "after SDFT" in "".join(printed)
    assert "What it costs" in printed[-1]
    assert shown == [True, True]
