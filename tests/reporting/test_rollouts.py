"""Rollouts are written as JSON lines and as readable text."""

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.reporting import rollouts
from sdft_jax.reporting.rollouts import RolloutRow
from sdft_jax.reporting.sinks import read_jsonl

ROW = RolloutRow("What is 2+2?", " four!", [" fo", "ur", "!"], [0.5, 0.01, 0.1], [-0.3, 0.0, 0.2])


def test_rollouts_are_written_as_jsonl_and_text(tmp_path):
    for _ in range(2):  # a resumed run may repeat a step
        rollouts.write_rollouts(tmp_path, 50, [ROW, ROW])
    rows = read_jsonl(tmp_path / "000050.jsonl")
    assert len(rows) == 2
    assert rows[0]["step"] == 50
    assert RolloutRow(**{key: value for key, value in rows[0].items() if key != "step"}) == ROW
    text = (tmp_path / "000050.txt").read_text()
    for part in ("step 50, rollout 2", "What is 2+2?", " four!", "sum of all: 0.610"):
        assert part in text


def test_rollout_text_shows_the_most_divergent_tokens_in_order():
    lines = rollouts.rollout_text(ROW, "t", max_tokens=2).splitlines()[-2:]
    assert lines[0].split() == ["0", "0.5000", "-0.3000", "'", "fo'", "#" * 20]
    assert lines[1].split() == ["2", "0.1000", "+0.2000", "'!'", "#" * 4]
    assert "0 of 0 tokens" in rollouts.rollout_text(RolloutRow("p", "", [], [], []), "empty")


def test_rollouts_are_read_by_step(tmp_path):
    for step, rows in ((100, [ROW]), (50, [ROW, ROW])):
        rollouts.write_rollouts(tmp_path, step, rows)
    read = rollouts.read_rollouts(tmp_path)
    assert list(read.items()) == [(50, [ROW, ROW]), (100, [ROW])]


@pytest.mark.parametrize("content", ["{}\n", "[]\n", '{"step": 1, "prompt": ', "half a line\n"])
def test_damaged_rollouts_are_refused(tmp_path, content):
    rollouts.write_rollouts(tmp_path, 50, [ROW])
    (tmp_path / "000100.jsonl").write_text(content)
    if content.endswith("\n"):
        with pytest.raises(SdftError, match=r"000100\.jsonl is not a file of rollouts: remove it\."):
            rollouts.read_rollouts(tmp_path)
    else:  # a kill may leave half of the last line
        assert rollouts.read_rollouts(tmp_path)[100] == []


def test_no_rollouts(tmp_path):
    with pytest.raises(SdftError, match="has no rollouts"):
        rollouts.read_rollouts(tmp_path / "missing")
