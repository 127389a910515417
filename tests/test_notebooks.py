"""The notebooks run from top to bottom, use only the public API, and print what their text says."""

import ast
import contextlib
import importlib.util
import io
import json
import re
import signal
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax
import pytest
from packaging.requirements import Requirement

import sdft_jax
from sdft_jax.training import checkpoint

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
LIBRARIES = sys.stdlib_module_names | {"google", "jax", "matplotlib", "numpy"}
REPOSITORY = "github.com/GITHUB_OWNER/sdft_jax"
"""The address in badges and install cells."""


def cells(name: str) -> list[dict]:
    """Return the code cells of a notebook."""
    document = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]


def run(name: str, **parameters) -> list[str]:
    """Run a notebook, and return the output of each code cell: what it prints, and the HTML of its result.

    `parameters` replace the values that the cell with the tag `parameters` sets.
    """
    namespace, outputs = {}, []
    for cell in cells(name):
        body = ast.parse("".join(cell["source"])).body
        last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(ast.Module(body, []), name, "exec"), namespace)
            result = eval(compile(last, name, "eval"), namespace) if last else None
        html = result._repr_html_() if hasattr(result, "_repr_html_") else ""
        outputs.append(out.getvalue() + html)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert parameters.keys() <= namespace.keys()
            namespace |= parameters
    assert not jax.distributed.is_initialized()
    return outputs


def private_uses(source: str) -> Iterator[str]:
    """Yield the imports and names of a code cell that are not public.

    Public are the names in `sdft_jax.__all__`, `LIBRARIES` and the standard library, except `unittest`, which
    could replace inner functions.
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


def test_badge_and_install_cell():
    """They are the same in all notebooks, except the name of the notebook."""
    install = set()
    for name in NAMES:
        document = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
        first, second, *_ = ("".join(cell["source"]) for cell in document["cells"])
        address = REPOSITORY.replace("github.com/", "https://colab.research.google.com/github/")
        assert first.startswith(
            "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        )
        assert first.splitlines()[0].endswith(f"]({address}/blob/main/notebooks/{name})")
        assert f"git+https://{REPOSITORY}" in second
        install.add(second)
    assert len(install) == 1


def test_installation_keeps_the_jax_of_colab(monkeypatch):
    """Colab has jax 0.7.2 and flax 0.11.2: the package accepts them, and pip gets them as requirements."""
    metadata = tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {Requirement(text).name: Requirement(text).specifier for text in metadata["dependencies"]}
    assert bounds["jax"].contains("0.7.2")
    assert bounds["flax"].contains("0.11.2")
    assert "tensorflow" not in bounds
    commands = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sdft_jax" else name)
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    exec("".join(cells(NAMES[0])[0]["source"]), {})
    (command,) = commands
    assert command[1:5] == ["-m", "pip", "install", "--quiet"]
    assert command[6:] == [f"{name}=={version(name)}" for name in ("jax", "jaxlib", "flax")]


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


def test_sdft_by_hand(pictures):
    _, device, *_, by_hand, library, update, _ = run("sdft_by_hand.ipynb")
    assert re.fullmatch(r"CPU: \d+ x cpu, jax [\d.]+\n", device)
    losses = re.findall(r"^step [123]: loss \d\.\d{6}$", by_hand, re.M)
    assert len(losses) == 3
    compared = re.findall(r"loss \d\.\d{6}, difference from the loss by hand (\S+)$", library + update, re.M)
    assert len(compared) == 4
    assert max(map(float, compared)) < 1e-5
    answers = update.splitlines()[-4:]
    assert sum("<think> reverse </think>" in answer for answer in answers) >= 3
    assert len(pictures) == 1


@pytest.mark.usefixtures("shared_compilations")
def test_finetune_your_model(tmp_path, pictures, monkeypatch, hub):
    """Interrupted after the second step, and run again from the top; at the end, the model is uploaded."""
    parameters = {"STEPS": 4, "HELD_OUT": 8, "OUTPUT": str(tmp_path), "HUB": "me/mine"}
    save = checkpoint.save

    def save_and_interrupt(manager, step, *rest):
        save(manager, step, *rest)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "save", save_and_interrupt)
    with pytest.raises(sdft_jax.Interrupted, match="after step 2"):
        run("finetune_your_model.ipynb", **parameters)
    monkeypatch.setattr(checkpoint, "save", save)
    outputs = run("finetune_your_model.ipynb", **parameters)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]

    device, row, _, roles, before, trained, answers, first, last, chat, exported, _ = outputs[2:]
    assert device.startswith("CPU: ")
    assert json.loads(row).keys() == {"prompt", "demonstration", "answer"}
    assert "504 rows to train on, 0 dropped, 8 held out" in roles
    assert roles.count("please blax the letters") == 2
    assert re.search(r"accuracy: \d\.\d{3}, with the demonstration in the prompt [01]\.\d{3}$", before, re.M)
    assert "resuming from step 2" in trained
    assert "trained for 4 steps" in trained
    assert re.search(r"^accuracy: \d\.\d{3} before, \d\.\d{3} after$", answers, re.M)
    assert answers.count("expected") == 4
    assert "<think>" in chat
    for page in (first, last):
        assert page.count("nats per token") == 3
        assert page.count("<span style=") >= 9
    assert "adapter_model.safetensors" in exported
    assert exported.splitlines()[-1] == f"{hub.url}/me/mine"
    assert "model.safetensors" in hub.files("me/mine")
    assert hub.repos["me/mine"]["private"]
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {"adapter_config.json"}
    assert len(pictures) == 1


@pytest.mark.usefixtures("shared_compilations")
def test_quickstart(tmp_path, pictures, monkeypatch):
    """With fewer steps and questions; the first run ends before it can save its third step."""
    parameters = {"STEPS": 4, "EVALUATED": 16, "OUTPUT": str(tmp_path)}
    save = checkpoint.save

    def save_or_end(manager, step, *rest):
        if step == 3:
            raise MemoryError
        save(manager, step, *rest)

    monkeypatch.setattr(checkpoint, "save", save_or_end)
    with pytest.raises(MemoryError):
        run("quickstart.ipynb", **parameters)
    monkeypatch.setattr(checkpoint, "save", save)
    *_, trained, table, answers, plot = run("quickstart.ipynb", **parameters)
    assert trained.count("resuming from step 2") == 1
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
    """One set of rules in each part, and a small model in part two, if the TPU compiler is installed.

    Tests of the update compare the losses under the other rules.
    """
    model, _ = sdft_jax.load_model("mini")
    padded = json.loads(model.architecture.source_json) | {"vocab_size": 160, "num_hidden_layers": 2}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(padded), encoding="utf-8")
    parameters = {
        "COMPARED": ["fsdp_only"],
        "PLANNED": ["sequence"],
        "MODEL": str(tmp_path / "model"),
        "SIZES": [
            "train.batch_size=8",
            "data.max_prompt=32",
            "data.max_teacher_prompt=64",
            "sampling.max_new_tokens=16",
        ],
        "OUTPUT": str(tmp_path),
    }
    printed = "".join(run("sharding_study.ipynb", **parameters))
    assert "CPU: mesh (2, 2, 2) of 8 devices" in printed
    assert "float32[16,128] @ float32[128,256] -> float32[16,256]" in printed
    assert "float32[16@data,128] @ float32[128,256@tensor] -> float32[16@data,256@tensor]" in printed
    assert "ShardingTypeError: Contracting dimensions are sharded" in printed
    assert "Involuntary full rematerialization" in printed
    assert re.search(r"^warning: none\ndirect +all-gather 3\.67 MB\nin two steps +all-to-all", printed, re.M)
    compared = re.findall(r"^(\w+(?: \w+)?) +\d\.\d{6} .* True$", printed, re.M)
    assert compared == ["one device", "fsdp_only"]
    if importlib.util.find_spec("libtpu"):
        compiled = re.findall(r"^(\w+) +[\d.]+ GiB peak memory", printed, re.M)
        assert compiled == ["sequence"]
        received = re.findall(r"^(\w+) +[\d.]+ GB:", printed, re.M)
        assert received == ["sequence"]
        assert len(pictures) == 12
    else:
        assert "Part two is skipped: the TPU compiler is not available" in printed
        assert len(pictures) == 10
    assert all(len(figures) == 1 for figures in pictures)
