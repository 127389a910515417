"""`sdft prepare`: its files, checksums and errors."""

import hashlib
import json
from pathlib import Path

import datasets
import pytest

from sdft_jax import cli

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCIENCE, TOOLUSE = str(FIXTURES / "science.jsonl"), str(FIXTURES / "tooluse.jsonl")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_and_checksums(tmp_path, capsys):
    out = tmp_path / "new" / "tooluse"
    assert cli.main(["prepare", "tooluse", f"test={TOOLUSE}", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["prepared.json", "test.jsonl"]
    rows = lines(out / "test.jsonl")
    assert [row["answer"] for row in rows] == [row["golden_answer"] for row in lines(Path(TOOLUSE))]
    sha256 = hashlib.sha256((out / "test.jsonl").read_bytes()).hexdigest()
    record = json.loads((out / "prepared.json").read_text(encoding="utf-8"))
    assert record == {
        "task": "tooluse",
        "splits": {
            "test": {
                "path": "test.jsonl",
                "rows": len(rows),
                "sha256": sha256,
                "source": TOOLUSE,
                "source_sha256": hashlib.sha256(Path(TOOLUSE).read_bytes()).hexdigest(),
            }
        },
    }
    assert sha256[:16] in capsys.readouterr().out


def test_tfds_has_the_checksum_of_the_same_json_lines(tmp_path, capsys):
    for options in ([], ["--tfds"]):
        out = tmp_path / f"out{len(options)}"
        assert cli.main(["prepare", "science", SCIENCE, str(out), "--hold-out", "1", *options]) == 0
    both = [
        json.loads((tmp_path / name / "prepared.json").read_text(encoding="utf-8"))["splits"]
        for name in ("out0", "out1")
    ]
    for split in ("train", "test"):
        assert both[0][split]["rows"] == 1
        assert both[0][split]["sha256"] == both[1][split]["sha256"]
    assert both[1]["test"]["path"] == "sdft_science/1.0.0"
    assert cli.main(["prepare", "science", SCIENCE, str(tmp_path / "out1"), "--tfds"]) == 2
    assert "1.0.0 exists: remove it, or give another directory." in capsys.readouterr().err


def test_released_directory_of_arrow_files(tmp_path, capsys):
    raw = tmp_path / "raw"
    train = {"messages": [{"role": "user", "content": "q"}], "output_text": "o", "source_index": 0}
    test = {"prompt": [{"role": "user", "content": "p"}], "answer": "a", "source_index": 1}
    datasets.Dataset.from_list([train]).save_to_disk(raw / "train_data")
    datasets.Dataset.from_list([test]).save_to_disk(raw / "eval_data")
    assert cli.main(["prepare", "medical", str(raw), str(tmp_path / "out")]) == 0
    assert lines(tmp_path / "out" / "train.jsonl") == [{"prompt": train["messages"], "demonstration": "o"}]
    assert lines(tmp_path / "out" / "test.jsonl") == [{"prompt": test["prompt"], "answer": "a"}]


def test_rows_that_cannot_be_converted(tmp_path, capsys):
    row = lines(Path(SCIENCE))[0]
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(row | {"answer": answer}) + "\n" for answer in "AEB"), encoding="utf-8")
    out = tmp_path / "out"
    assert cli.main(["prepare", "science", SCIENCE, str(out)]) == 0
    before = (out / "train.jsonl").read_bytes()
    assert cli.main(["prepare", "science", str(raw), str(out)]) == 2
    error = capsys.readouterr().err
    assert (
        "raw.jsonl, line 2: field 'answer' has the answer 'E': give one of the options, A, B, C, D" in error
    )
    assert (out / "train.jsonl").read_bytes() == before
    assert cli.main(["prepare", "science", str(raw), str(out), "--skip"]) == 0
    assert "train: 1 cannot be converted, such as " in capsys.readouterr().out
    assert [row["answer"] for row in lines(out / "train.jsonl")] == ["A", "B"]


def test_errors_of_the_command_line(tmp_path, capsys):
    out = str(tmp_path / "out")
    for command, message in (
        (["maths", SCIENCE, out], "task 'maths' does not exist: use one of"),
        (["science", "nowhere.jsonl", out], "nowhere.jsonl does not exist"),
        (["science", SCIENCE, SCIENCE, SCIENCE, out], "give each split once"),
        (["science", SCIENCE, SCIENCE], "cannot be written"),
        (["science", SCIENCE, "gs://bucket/out"], "gs://bucket/out is in a bucket: give a local directory"),
    ):
        assert cli.main(["prepare", *command]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("raw", ["train.jsonl", "../raw"])
def test_raw_files_are_not_replaced(raw, tmp_path, capsys, monkeypatch):
    (tmp_path / "raw").mkdir()
    monkeypatch.chdir(tmp_path / "raw")
    before = Path(SCIENCE).read_bytes()
    Path("train.jsonl").write_bytes(before)
    assert cli.main(["prepare", "science", raw, ".", "--hold-out", "1"]) == 2
    assert f"would replace the rows that are read from {raw}: give another" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == {"train.jsonl": before}
