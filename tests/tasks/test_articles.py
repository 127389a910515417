"""Articles from files and data sets, and their passages."""

import json

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.tasks.articles import Article, read_articles, split_passages


def test_texts_markdown_and_rows(tmp_path):
    (tmp_path / "b_two.txt").write_text("# not a heading\n\ntext\n")
    (tmp_path / "a.md").write_text("\n# The Title\n\nFirst.\n\n## Part\n\nSecond.\n")
    (tmp_path / "ignored.png").write_bytes(b"\x89")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ({"text": " x "}, {"text": "y", "title": "Y"})))
    assert read_articles([str(tmp_path), str(rows)]) == [
        Article("The Title", "First.\n\n## Part\n\nSecond.", str(tmp_path / "a.md")),
        Article("b two", "# not a heading\n\ntext", str(tmp_path / "b_two.txt")),
        Article("rows 1", "x", f"{rows}, line 1"),
        Article("Y", "y", f"{rows}, line 2"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b" \n", r"a\.txt has no text: remove it"),
        ("a.md", b"# Only a title", r"a\.md has no text"),
        ("a.txt", b"\xff", r"a\.txt: byte 0 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"title": "t"}\n', r"a\.jsonl, line 2: field 'text' is missing"),
        ("a.jsonl", b'{"text": "x", "title": 3}\n', r"a\.jsonl, line 1: field 'title' is not a text"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl, line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "x"}\n', r"line 2 has the same text as .*line 1: remove one"),
    ],
)
def test_articles_that_cannot_be_read(name, content, problem, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SdftError, match=problem):
        read_articles([str(tmp_path / name)])


def test_missing_file():
    with pytest.raises(SdftError, match=r"/no/such\.txt does not exist"):
        read_articles(["/no/such.txt"])


@pytest.mark.parametrize(
    ("text", "words", "passages"),
    [
        ("a b c", 3, ["a b c"]),
        ("a b\n\n\nc d\n \ne", 4, ["a b\n\nc d", "e"]),
        ("a\n\nb\n\nc\n\nd\n\ne\n\nf", 5, ["a\n\nb\n\nc", "d\n\ne\n\nf"]),
        ("a b. c d! e f? g", 4, ["a b. c d!", "e f? g"]),
        ("a b c d e", 2, ["a b", "c d", "e"]),
        ("x\n\na b c d e. f", 3, ["x", "a b c", "d e.\n\nf"]),
    ],
)
def test_passages(text, words, passages):
    found = split_passages(text, words)
    assert max(len(passage.split()) for passage in found) <= words
    assert " ".join(found).split() == text.split()
    assert found == passages
