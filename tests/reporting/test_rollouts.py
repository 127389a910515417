"""Rollouts are written as JSON lines and as readable text."""

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
