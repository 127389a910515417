"""The layout of the package: imports go down only, without circles, and by public names."""

import ast
import importlib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "sdft_jax"

PACKAGES = (
    "errors",
    "types",
    "files",
    "sharding",
    "config",
    "kernels",
    "models",
    "data",
    "reporting",
    "sampling",
    "algorithm",
    "evaluation",
    "tasks",
    "plan",
    "training",
    "continual",
    "commands",
    "mini",
    "studies",
    "cli",
)
"""Lowest first. `__init__.py`, the public API, stands above all of them."""

BANS = {
    # package -> what it may not import, although it is lower
    "kernels": ("sdft_jax.algorithm", "sdft_jax.data", "sdft_jax.training"),
    "models": ("sdft_jax.algorithm", "sdft_jax.data", "sdft_jax.training"),
    "sampling": ("sdft_jax.algorithm", "sdft_jax.data", "sdft_jax.training"),
    "data": ("jax", "flax", "optax", "sdft_jax.sharding", "sdft_jax.kernels", "sdft_jax.models"),
}
STUDIES = ("sdft_jax.mini", "sdft_jax.studies")
"""Imported by nothing but themselves and `cli`."""

MODULES = sorted(path for path in ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name of a module."""
    parts = ("sdft_jax", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


def package_of(module: str) -> str:
    """The entry at the top level that holds a module; empty for the public API."""
    return [*module.split("."), ""][1]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, imported name) of every import of a file, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def target(module: str, name: str) -> str:
    """The module that defines what is imported: a package's exports are those of its modules."""
    if f"{module}.{name}" in NAMES:
        return f"{module}.{name}"
    path = NAMES.get(module)
    if path is not None and path.name == "__init__.py":
        exported = {exported: where for where, exported in imports(path) if where.startswith("sdft_jax")}
        return exported.get(name, module)
    return module


def test_only_packages_at_the_top_level():
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert files == {"__init__.py", "cli.py", "errors.py", "types.py", "py.typed"}
    entries = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert entries | {"errors", "types", "cli"} == set(PACKAGES)


@pytest.mark.parametrize("package", sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))
def test_a_package_opens_with_its_charter(package):
    document = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    assert document is not None
    assert document.splitlines()[0].endswith(".")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    package = package_of(name_of(path))
    if not package:
        return
    for module, name in imports(path):
        if module.split(".")[0] == "sdft_jax":
            other = package_of(target(module, name))
            assert other, f"{name_of(path)} imports the public API"
            assert PACKAGES.index(other) <= PACKAGES.index(package), (
                f"{name_of(path)} imports {module}.{name}"
            )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_bans(path):
    package = package_of(name_of(path))
    for module, name in imports(path):
        full = target(module, name)
        for banned in BANS.get(package, ()):
            assert not f"{full}.".startswith(f"{banned}."), f"{name_of(path)} imports {full}"
        if package not in ("mini", "studies", "cli"):
            assert not f"{full}.".startswith(tuple(f"{study}." for study in STUDIES)), f"{full} in {path}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_names_stay_in_their_module(path):
    modules = set()
    for module, name in imports(path):
        if module.split(".")[0] == "sdft_jax":
            assert not name.startswith("_"), f"{name_of(path)} imports {module}.{name}"
            modules |= {name} & {other.rpartition(".")[2] for other in NAMES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert not node.attr.startswith("_"), f"{name_of(path)}:{node.lineno} reads {ast.unparse(node)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_texts_have_an_encoding(path):
    """The default is that of the locale, which differs between machines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) in ("os.open", "direct.open"):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        is_method = isinstance(node.func, ast.Attribute)  # `write_text` of sdft_jax.files is always UTF-8
        reads = name in ("open", "fdopen") or (is_method and name in ("read_text", "write_text"))
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        binary = any(isinstance(word, ast.Constant) and "b" in str(word.value) for word in node.args)
        if (reads and not binary) or options.get("text") == "True":
            assert "encoding" in options, f"{name_of(path)}:{node.lineno} {ast.unparse(node)}"


def test_no_circle():
    graph = {
        name: {target(*pair) for pair in imports(path)} & NAMES.keys() - {name}
        for name, path in NAMES.items()
        if path.name != "__init__.py" or not package_of(name)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))
def test_exports_exist(package):
    module = importlib.import_module(f"sdft_jax.{package}")
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
        assert f"sdft_jax.{package}.{name}" not in NAMES, f"{package}.{name} is both a module and an export"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_texts_do_not_depend_on_defaults(path):
    """The text of tokens depends on the tokenizer's clean-up, the text of a process on the locale."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        names = {keyword.arg for keyword in node.keywords}
        called = ast.unparse(node.func)
        if called.endswith(("tokenizer.decode", ".batch_decode")):
            assert "clean_up_tokenization_spaces" in names, f"{name_of(path)}:{node.lineno}"
        assert not names & {"text", "universal_newlines"} or not called.startswith("subprocess."), (
            f"{name_of(path)}:{node.lineno}: give an encoding instead"
        )
