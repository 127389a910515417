"""The documentation says what the code does."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sdft_jax.config.reference import as_help, as_markdown, options

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for pattern in ("*.md", "*/README.md", "sdft_jax/**/*.md")
    for page in ROOT.glob(pattern)
    if not page.relative_to(ROOT).parts[0].startswith((".", "runs"))
)
README = ROOT / "README.md"


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line of a page outside code blocks."""
    in_code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, line


def test_the_table_of_options_is_up_to_date():
    assert as_markdown() in (ROOT / "configs" / "README.md").read_text(), (
        "run `python -m sdft_jax.config.reference` and copy its table into configs/README.md"
    )


def test_every_option_is_documented():
    assert [option.key for option in options() if not option.documentation] == []
    assert "train.batch_size=32" in as_help()


def test_readme_opens_with_the_two_commands():
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks[0].strip() == "pip install -e . && sdft train configs/quickstart.yaml"
    assert blocks[1].strip() == "pip install -e '.[test]' && pytest"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_lines_have_at_most_120_characters(page):
    """Except in tables and code blocks, and if a link is alone on its line."""
    link = re.compile(r"\s*(?:[-*] )?!?\[[^\]]*\]\([^)]*\)[.,:;]?")
    too_long = [
        f"{page_name(page)}:{number} has {len(line)} characters"
        for number, line in prose(page)
        if len(line) > 120 and not line.startswith("|") and not link.fullmatch(line)
    ]
    assert too_long == []


def test_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    exec(block, {"__name__": "readme"})
    *losses, completion = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in losses] == ["0", "1", "2"]
    assert np.isfinite([float(line.split()[1]) for line in losses]).all()
    assert completion.startswith("<think>")
    assert (tmp_path / "exported" / "model.safetensors").is_file()


def test_size_of_the_method():
    """The modules in the README's table are the method, and have about 1,000 lines."""
    text = README.read_text(encoding="utf-8")
    assert "\n## The method in about 1,000 lines\n" in text
    table = text.partition("| part of Algorithm 1 | module |\n")[2].partition("\n\n")[0]
    modules = re.findall(r"\((sdft_jax/[\w/]+\.py)\) \|$", table, re.MULTILINE)
    assert len(modules) == len(set(modules)) == 8
    lines = [len((ROOT / module).read_text(encoding="utf-8").splitlines()) for module in modules]
    assert 800 <= sum(lines) <= 1200
