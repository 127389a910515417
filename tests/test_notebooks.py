"""Notebooks run from top to bottom, and what they print is still true."""

import contextlib
import importlib.util
import io
import json
import re
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


def test_sharding_study(tmp_path, monkeypatch):
    """Part two on the embedded model too, where the TPU compiler is installed."""
    shown = []
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: shown.append(True))
    sizes = [
        "train.batch_size=8",
        "data.max_prompt=32",
        "data.max_teacher_prompt=64",
        "sampling.max_new_tokens=16",
    ]
    larger = dict(LARGER=("mini", "v5e:2x2", "fsdp=2,tensor=2"), LARGER_SIZES=sizes)
    study = run("sharding_study.ipynb", MODEL="mini", SIZES=sizes, **larger, OUTPUT=str(tmp_path))
    printed = "".join(study)
    layouts = r"^(as in training|whole width|rows travel) "
    assert re.findall(layouts + ".* [0-9]+$", printed, re.M) == [
        "as in training",
        "whole width",
        "rows travel",
    ]
    assert "mesh (2, 2, 2) of 8 devices" in printed
    assert len(re.findall(r"^\w.* True$", printed, re.M)) == 6  # one device and five sets of rules
    if importlib.util.find_spec("libtpu"):
        assert len(re.findall(r"^(?:default|sequence) .* GiB at peak", printed, re.M)) == 2
        assert len(re.findall(layouts + ".* exchanges .* GiB$", printed, re.M)) == 3
        assert len(shown) == 11
    else:
        assert "Part two is skipped: the TPU compiler is not available" in printed
        assert len(shown) == 9
