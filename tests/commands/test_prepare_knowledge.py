"""`sdft prepare knowledge`: its files, its table and its errors."""

import hashlib
import json
from pathlib import Path

import pytest

from endpoints import serve
from sdft_jax import cli
from sdft_jax.data import read_rows

CONFIG = Path(__file__).parents[2] / "configs" / "tasks" / "knowledge.yaml"
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


OOD = {"question": "Which town lost houses in May 2025?", "answer": "Arnvik", "sentence": "Arnvik did."}


@pytest.mark.usefixtures("shared_compilations")
def test_rows_for_tfds_are_those_of_json_lines_and_are_evaluated_with_the_oracle(
    tiny_directory, tmp_path, capsys
):
    article, records = tmp_path / "storm.md", {}
    article.write_text(TEXT)

    def respond(messages):
        text = messages[0]["content"]
        if "Grade an answer" in text:
            return "CORRECT" if OOD["question"] in text else "PARTIALLY"
        return json.dumps([OOD if "indirect" in text else HOUSES])

    with serve(respond) as endpoint:
        settings = endpoint.settings(tmp_path / "replies.jsonl")
        for name, options in (("lines", []), ("tfds", ["--tfds"])):
            out = tmp_path / name
            assert cli.main(["prepare", "knowledge", str(article), str(out), *settings, *options]) == 0
            records[name] = json.loads((out / "prepared.json").read_text())["splits"]
        source = tmp_path / "tfds" / records["tfds"]["test"]["path"]
        small = ("mesh.fsdp=1", "eval.batch_size=2", "sampling.max_new_tokens=4", "eval.teacher=true")
        command = ["evaluate", str(tiny_directory), f"{source}:test", str(CONFIG), *small, *settings]
        assert cli.main([*command, "--out", str(tmp_path / "answers")]) == 0
    lines = {name: split["sha256"] for name, split in records["lines"].items()}
    assert lines == {name: split["sha256"] for name, split in records["tfds"].items()}
    assert sorted(path.name for path in (tmp_path / "tfds").glob("*.jsonl")) == ["articles.jsonl"]
    tested = [json.loads(line) for line in (tmp_path / "lines" / "test.jsonl").read_text().splitlines()]
    assert [row | {"demonstration": ""} for row in tested] == list(read_rows(f"{source}:test"))
    summary = json.loads((tmp_path / "answers" / "summary.json").read_text())
    assert summary["scorer"] == "grader with the prompt facts-v1"
    for role in ("student", "teacher"):
        numbers = {"all": summary["roles"][role], **summary["skills"][role]}
        assert {name: (one["accuracy"], one["lenient"]) for name, one in numbers.items()} == {
            "all": (0.5, 1.0),
            "direct": (0.0, 1.0),
            "ood": (1.0, 1.0),
        }
    table = {line.split("  ")[0] for line in capsys.readouterr().out.splitlines()}
    skills = ("", ", direct", ", ood")
    assert table >= {f"{role}{skill}" for role in ("student", "teacher") for skill in skills}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["a.txt", "out"], "judge.url is not set: set it to the base URL of an OpenAI-compatible endpoint"),
        (["out", "judge.url=http://127.0.0.1:9/v1", "judge.model=m"], "give articles and a directory"),
        (["a.txt", "out", "--skip"], "task knowledge has no --hold-out or --skip"),
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
