"""The documentation says what the code does."""

import re
from pathlib import Path

from sdft_jax.config.reference import as_help, as_markdown, options

ROOT = Path(__file__).parent.parent


def test_table_of_options_is_up_to_date():
    assert as_markdown() in (ROOT / "configs" / "README.md").read_text(), (
        "run `python -m sdft_jax.config.reference` and put its table into configs/README.md"
    )


def test_every_option_has_a_meaning():
    assert [option.key for option in options() if not option.meaning] == []
    assert "train.batch_size=32" in as_help()


def test_readme_opens_with_the_two_commands():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks[0].strip() == "pip install -e . && sdft train configs/quickstart.yaml"
    assert blocks[1].strip() == "pip install -e '.[test]' && pytest"


def test_links_of_the_documentation_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page, target)
