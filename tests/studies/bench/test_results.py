"""The output of a benchmark."""

import json

from sdft_jax.reporting.charts import Bar
from sdft_jax.studies.bench.results import Measured, publish


def test_results_are_published_as_table_json_plot_and_page(tmp_path, capsys):
    ratios = [Bar("a", "seconds", 2.0)]
    rows = [{"case": "a", "ours": "1 s"}]
    publish(Measured("divergence", rows, ratios, {"every": 1}, "a machine", "idle"), str(tmp_path))
    assert "1 s" in capsys.readouterr().out
    report = json.loads((tmp_path / "divergence.json").read_text())
    assert report["measured on"] == "a machine; idle"
    assert report["details"] == {"every": 1}
    assert (tmp_path / "divergence.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "| a | 1 s |" in (tmp_path / "README.md").read_text()
