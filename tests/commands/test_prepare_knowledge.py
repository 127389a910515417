"""`sdft prepare knowledge`: its files, its table and its errors."""

import hashlib
import json

import pytest

from endpoints import serve
from sdft_jax import cli

KEY = "sk-very-secret-0123456789"
TEXT = "# Storm of Arnvik\n\nOn 2 May 2025, a storm reached Arnvik. It destroyed 1,200 houses.\n"
HOUSES = {
    "question": "How many houses did the storm at Arnvik destroy?",
    "paraphrase": "What was the number of houses lost at Arnvik?",
    "answer": "1,200",
    "sentence": "It destroyed 1200 houses.",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_files_and_table(tmp_path, capsys):
    article, out = tmp_path / "storm.md", tmp_path / "new" / "out"
    article.write_text(TEXT)

    def respond(messages):
        return "no" if "indirect" in messages[0]["content"] else json.dumps([HOUSES, HOUSES])

    with serve(respond) as endpoint:
        settings = endpoint.settings(tmp_path / "replies.jsonl")
        assert cli.main(["prepare", "knowledge", str(article), str(out), *settings]) == 0
        assert endpoint.keys == {KEY}
    printed = capsys.readouterr().out
    assert "1 articles in 1 passages" in printed
    assert "refused  1 direct: it has been asked before" in printed
    assert f"1 requests have no usable reply: {article}, passage 1, ood questions (it is not" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "articles.jsonl",
        "prepared.json",
        "test.jsonl",
        "train.jsonl",
    ]
    record = json.loads((out / "prepared.json").read_text())
    for split in ("train", "test", "articles"):
        content = (out / f"{split}.jsonl").read_bytes()
        assert record["splits"][split]["sha256"] == hashlib.sha256(content).hexdigest()
        assert record["splits"][split]["rows"] == 1
    assert record["model"] == "grader"
    assert record["knowledge"]["direct_prompt"] == "direct-v1"
    assert record["refused"] == [{"kind": "direct", "reason": "it has been asked before", "questions": 1}]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in path.read_text() for path in files)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["a.txt", "out"], "judge.url is not set: set it to the base URL of an OpenAI-compatible endpoint"),
        (["out", "judge.url=http://127.0.0.1:9/v1", "judge.model=m"], "give articles and a directory"),
        (["a.txt", "out", "--skip"], "task knowledge has no --hold-out, --skip or --tfds"),
        (["a.txt", "out", "judge.url=http://127.0.0.1:9/v1"], "judge.url is set and judge.model is not"),
        (
            ["/no.txt", "out", "judge.url=http://127.0.0.1:9/v1", "judge.model=m"],
            "/no.txt does not exist",
        ),
        (
            ["articles.jsonl", ".", "judge.url=http://127.0.0.1:9/v1", "judge.model=m"],
            "articles.jsonl would replace the rows that are read from articles.jsonl: give another directory",
        ),
        (["a.txt", "out", "knowledge.wrods=3"], "unknown key knowledge.wrods; did you mean knowledge.words?"),
    ],
)
def test_mistakes(words, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Text.")
    (tmp_path / "articles.jsonl").write_text('{"text": "Text."}\n')
    assert cli.main(["prepare", "knowledge", *words]) == 2
    assert problem in capsys.readouterr().err
