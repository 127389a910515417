"""The comparison of a training step with TRL, without timing it."""

import sys

import pytest

from sdft_jax import cli
from sdft_jax.errors import SdftError
from sdft_jax.studies.bench import trl
from sdft_jax.studies.bench.trl import Case, compare


def run_of(seconds, peak, device_peak=None):
    """Return the result of a process whose two uncounted steps took 9 and 8 s."""
    return {"seconds": [9.0, 8.0, *seconds], "peak": peak, "device_peak": device_peak, "dtype": "float32"}


def test_comparison_uses_medians_of_the_steps_after_the_warm_up():
    ours = [run_of([1.0, 1.0, 5.0], 2**20), run_of([2.0, 2.0, 2.0], 2**21)]
    trl = [run_of([3.0, 3.0, 3.0], 2**22), run_of([8.0, 8.0, 9.0], 2**20)]
    row, bars = compare(Case("1M", 8, 64, 64), {"ours": ours, "trl": trl})
    assert (row["sdft_jax"], row["TRL"]) == ("1.5 s", "5.5 s")
    assert row["times faster"] == "3.5 (3.0-4.0)"
    assert (row["sdft_jax, peak"], row["TRL, peak"]) == ("2 MiB", "4 MiB")
    assert [bar.value for bar in bars] == [3.5, 2.0]


def test_gpu_and_cpu_are_not_compared():
    with pytest.raises(SdftError, match="one library ran on a GPU and the other did not"):
        compare(Case("1M", 8, 64, 64), {"ours": [run_of([1.0], 1, 5)], "trl": [run_of([1.0], 1)]})


def test_loss_and_gradient_agree_with_trl(monkeypatch):
    """Requires TRL."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    pytest.importorskip("trl")
    differences = trl.cross_check("float32")
    assert 0 < max(differences.values()) < trl.TOLERANCE


def test_different_gradient_is_an_error(monkeypatch):
    monkeypatch.setattr(trl, "_process", lambda *_: {"loss": 1e-6, "gradient": 2e-4})
    with pytest.raises(SdftError, match=r"loss and gradient differ from TRL's by .*, more than 0.0001"):
        trl.cross_check("float32")


def test_missing_trl_is_an_error_that_names_the_extra_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["bench", "trl"]) == 2
    assert "pip install -e '.[bench]'" in capsys.readouterr().err
