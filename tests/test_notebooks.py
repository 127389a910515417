"""The notebooks run from top to bottom, use only the public API, and print what their text says."""

import ast
import contextlib
import importlib.util
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdft_jax

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
LIBRARIES = sys.stdlib_module_names | {"jax", "matplotlib", "numpy"}


def cells(name: str) -> list[dict]:
    """Return the code cells of a notebook."""
    document = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]


def run(name: str, **parameters) -> list[str]:
    """Run a notebook, and return the standard output of each code cell.

    `parameters` replace the values that the cell with the tag `parameters` sets.
    """
    namespace, printed = {}, []
    for cell in cells(name):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec("".join(cell["source"]), namespace)
        printed.append(out.getvalue())
        if "parameters" in cell["metadata"].get("tags", ()):
            assert parameters.keys() <= namespace.keys()
            namespace |= parameters
    return printed


def private_uses(source: str) -> Iterator[str]:
    """Yield the imports and names of a code cell that are not public.

    Public are the names in `sdft_jax.__all__`, jax, numpy, matplotlib and the standard library, except
    `unittest`, which could replace inner functions.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, inner = alias.name.partition(".")
                allowed = not inner if package == "sdft_jax" else package in LIBRARIES - {"unittest"}
                if not allowed:
                    yield f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                if module == "sdft_jax":
                    allowed = alias.name in sdft_jax.__all__
                else:
                    allowed = module.partition(".")[0] in LIBRARIES - {"unittest"}
                if node.level or not allowed:
                    yield f"from {module} import {alias.name}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("sdft", "sdft_jax"):
            yield from {ast.unparse(node)} if node.attr not in sdft_jax.__all__ else ()


@pytest.mark.parametrize("name", NAMES)
def test_public_api_only(name):
    sources = ["".join(cell["source"]) for cell in cells(name)]
    assert [use for source in sources for use in private_uses(source)] == []
    assert any("import sdft_jax as sdft" in source for source in sources)


def test_private_uses():
    """The reader of imports finds every kind of private use."""
    public = [
        "import jax, jax.numpy as jnp, os.path",
        "import sdft_jax as sdft",
        "from sdft_jax import train",
    ]
    assert [use for source in [*public, "sdft.train"] for use in private_uses(source)] == []
    private = {
        "import sdft_jax.plan.hlo as hlo": "import sdft_jax.plan.hlo",
        "from sdft_jax.plan.hlo import collectives": "from sdft_jax.plan.hlo import collectives",
        "from sdft_jax import plan": "from sdft_jax import plan",
        "from unittest.mock import patch": "from unittest.mock import patch",
        "import optax": "import optax",
        "def f():\n    return sdft.plan.hlo": "sdft.plan",
    }
    for source, use in private.items():
        assert list(private_uses(source)) == [use]


@pytest.fixture
def pictures(monkeypatch):
    """Return a list with one entry for each picture that is shown."""
    import matplotlib.pyplot as plt

    shown = []

    def show():
        shown.append(plt.get_fignums())
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    with plt.rc_context({"backend": "agg"}):
        yield shown


def test_sdft_by_hand():
    *_, by_hand, last = run("sdft_by_hand.ipynb")
    losses = re.findall(r"^step [123]: loss \d\.\d{6}$", by_hand, re.M)
    assert len(losses) == 3
    compared = re.findall(r"^step [123]: loss \d\.\d{6}, difference from the loss by hand (\S+)$", last, re.M)
    assert len(compared) == 3
    assert max(map(float, compared)) < 1e-5
    answers = last.splitlines()[-4:]
    assert sum("<think> reverse </think>" in answer for answer in answers) >= 3


def test_quickstart(tmp_path, pictures):
    """With fewer steps and questions."""
    *_, table, plot, answers = run("quickstart.ipynb", STEPS=4, EVALUATED=16, OUTPUT=str(tmp_path))
    numbers = r" +(?:[01]\.\d{3}|–) +(?:[01]\.\d{3}|–) +(?:\d\.\d{3}|–)$"
    for model in ("before", "before, with the demonstration", "after SDFT", "after SFT"):
        assert re.search(f"^{model}{numbers}", table, re.M), table
    assert len(table.splitlines()) == 5
    assert plot == ""
    assert len(pictures) == 1
    assert len(re.findall("^please blax the letters .*<think>", answers, re.M)) == 4
    assert (tmp_path / "sdft" / "model" / "model.safetensors").exists()
    assert (tmp_path / "sft" / "model" / "model.safetensors").exists()


def test_sharding_study(tmp_path, pictures):
    """With the built-in model in part two, if the TPU compiler is installed."""
    model, _ = sdft_jax.load_model("mini")
    padded = json.loads(model.architecture.source_json) | {"vocab_size": 160}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(padded), encoding="utf-8")
    sizes = [
        "train.batch_size=8",
        "data.max_prompt=32",
        "data.max_teacher_prompt=64",
        "sampling.max_new_tokens=16",
    ]
    printed = "".join(
        run("sharding_study.ipynb", MODEL=str(tmp_path / "model"), SIZES=sizes, OUTPUT=str(tmp_path))
    )
    assert "mesh (2, 2, 2) of 8 devices" in printed
    assert len(re.findall(r"^\w.* True$", printed, re.M)) == 6  # one device and five sets of rules
    if importlib.util.find_spec("libtpu"):
        compiled = re.findall(r"^(\w+) +[\d.]+ GiB peak memory", printed, re.M)
        assert compiled == ["default", "replicated", "sequence"]
        received = re.findall(r"^(\w+) +[\d.]+ GB:", printed, re.M)
        assert received == ["default", "replicated", "sequence"]
        assert len(pictures) == 11
    else:
        assert "Part two is skipped: the TPU compiler is not available" in printed
        assert len(pictures) == 9
    assert all(len(figures) == 1 for figures in pictures)
