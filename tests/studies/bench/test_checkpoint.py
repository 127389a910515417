"""The comparison of a commit with one that reads everything back."""

import pytest

from benches import run_bench
from sdft_jax.studies.bench import checkpoint


def test_parts_of_a_save_are_measured_for_each_number_of_processes(tmp_path):
    options = ("--processes", "1", "2", "--mebibytes", "1", "--repeats", "1")
    report = run_bench("checkpoint", tmp_path, *options)
    assert [(case["processes"], case["mebibytes"]) for case in report["details"]] == [(1, 1), (2, 1)]
    for case in report["details"]:
        (save,) = case["saves"]
        assert min(save.values()) > 0
        assert save["returned"] <= save["committed"]
    assert (tmp_path / "checkpoint.png").read_bytes().startswith(b"\x89PNG")


def test_ratio_is_that_of_a_commit_without_digests_that_reads_back(monkeypatch):
    save = {"digests": 0.5, "returned": 0.7, "committed": 2.0, "read back": 4.5, "restored": 1.0}
    monkeypatch.setattr(checkpoint, "measure", lambda case, repeats: [save] * repeats)
    row, (bar,), _ = checkpoint._measure_case(checkpoint.Case(4, 64), 3)
    assert bar.value == pytest.approx(3.0)
    assert (row["commit"], row["reading back"], row["with it / without"]) == ("2.00 s", "4.50 s", "3.00")
