"""Templates by name, as a text and in a file."""

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.files import read_template

KNOWN = {"one-v1": "1 $a $b", "two-v1": "2 $a $b"}
NAMES = ("a", "b")


def test_template_by_name_as_text_and_in_a_file(tmp_path):
    file = tmp_path / "own.txt"
    file.write_bytes("\u00e9 $a, ${b} for $$5".encode())
    texts = [
        read_template(setting, "section.key", KNOWN, NAMES).substitute(a="$b", b="y")
        for setting in ("two-v1", "$b $a", f"file:{file}")
    ]
    assert texts == ["2 $b y", "y $b", "\u00e9 $b, y for $5"]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            "one-v2",
            r"^section\.key: \$a is missing: this template requires \$a and \$b; the built-in templates are "
            r"one-v1, two-v1\.$",
        ),
        ("$a", r"^section\.key: \$b is missing: this template requires \$a and \$b\.$"),
        ("$a $b $c", r"unknown placeholder \$c: use only \$a and \$b\.$"),
        ("$a $b $", r"a \$ does not start a placeholder: write \$\$"),
        ("file:/no/such.txt", r"^/no/such.txt does not exist: give a text file in UTF-8 as section\.key\.$"),
    ],
)
def test_invalid_templates_raise(setting, problem):
    with pytest.raises(SdftError, match=problem):
        read_template(setting, "section.key", KNOWN, NAMES)
