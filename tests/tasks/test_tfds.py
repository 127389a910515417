"""TFDS builders: the same rows as JSON lines, without TensorFlow."""

import json
import sys

import pytest
import tensorflow_datasets as tfds

from sdft_jax.config.settings import DataConfig
from sdft_jax.data import load_examples, read_rows
from sdft_jax.errors import SdftError
from sdft_jax.tasks import TASKS, task_rows
from sdft_jax.tasks.tfds import make_builder

CALLS = [{"Action": "get", "Action_Input": "{}"}, {"Action": "put", "Action_Input": '{"a": 1}'}]
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "é?\nA: x\nB: y\nC: z\nD: w"}]
RAW = {
    "tooluse": {"prompt": "q", "golden_answer": CALLS, "golden_response": ["a", "b"]},
    "science": {"messages": MESSAGES, "output_text": "<answer>B</answer>"},
    "medical": {"Question": "q", "Response": "r"},
    "rule": {"prompt": "q", "rule": "r", "check": ["json", "max_words: 3"]},
    "knowledge": {
        "prompt": [{"role": "user", "content": "q"}],
        "demonstration": "d",
        "context": "c",
        "answer": "a",
        "skill": "direct",
        "article": "t",
    },
}


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_those_of_the_raw_files(tmp_path, name):
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, count in (("train", 3), ("test", 1)):
        (raw / f"{split}.jsonl").write_text((json.dumps(RAW[name]) + "\n") * count, encoding="utf-8")
    builder = make_builder(name, str(raw), tmp_path / "out")
    settings = tfds.download.DownloadConfig(manual_dir=str(raw))
    builder.download_and_prepare(file_format="array_record", download_config=settings)
    (expected,) = task_rows(TASKS[name], str(raw / "test.jsonl"), "test")
    rows = read_rows(builder.data_dir)
    assert len(rows) == 3
    assert all({"answer": "", **expected} == row for row in rows)
    config = DataConfig(context="context" if TASKS[name].context else None)
    (example,) = load_examples(
        f"{builder.data_dir}:test", config, demonstration=not TASKS[name].context, context=TASKS[name].context
    )
    assert (example.context or example.demonstration) == (
        expected.get("context") or expected["demonstration"]
    )
    assert "tensorflow" not in sys.modules


def test_guides_are_configurations_that_need_no_files(tmp_path):
    builder = tfds.builder("sdft_rule/brief", data_dir=str(tmp_path))
    builder.download_and_prepare(file_format="array_record")
    rows = read_rows(builder.data_dir, "test")
    assert len(rows) == 24
    assert rows[0]["answer"] == ["max_words: 15", "max_lines: 1"]


def test_missing_raw_files_are_an_error(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "other.jsonl").touch()
    builder = make_builder("science", "", tmp_path / "out")
    settings = tfds.download.DownloadConfig(manual_dir=str(tmp_path / "raw"))
    with pytest.raises(SdftError, match=r"raw has no raw files\. Put the released data set into manual_dir"):
        builder.download_and_prepare(file_format="array_record", download_config=settings)
