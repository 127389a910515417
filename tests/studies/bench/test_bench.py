"""What benchmarks are made of; none of them is timed here."""

import json
import sys

import jax
import numpy as np
import pytest

from sdft_jax import cli
from sdft_jax.data.encoding import render, student_messages, tokenize
from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, load_model
from sdft_jax.models.hf.tokenizer import load_tokenizer
from sdft_jax.plan.hlo import matmul_flops
from sdft_jax.reporting.charts import Bar
from sdft_jax.sharding import single_device
from sdft_jax.studies.bench import decode, divergence, loop, sft, train, trl, trl_check
from sdft_jax.studies.bench.models import SIZES, architecture, write_model, write_rows
from sdft_jax.studies.bench.results import Measured, publish
from sdft_jax.studies.bench.trl import Case, compare


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    assert write_model("0.2M", path / "model") == pytest.approx(2e5, rel=0.3)
    return path


def test_a_model_is_a_checkpoint_of_its_size(directory):
    model, _ = load_model(directory / "model")
    assert model.config.hidden_size == SIZES["0.2M"]["hidden_size"]


def test_prompts_have_exactly_the_tokens_that_were_asked_for(directory):
    write_rows(directory / "model", directory / "rows.jsonl", 3, prompt=40, demonstration=7)
    tokenizer = load_tokenizer(str(directory / "model"))
    rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        text = render(tokenizer, student_messages(Example(row["prompt"], "", None, 0, "")), {})
        assert len(tokenize(tokenizer, text)) == 40
        assert len(tokenize(tokenizer, row["demonstration"])) == 7


def run_of(seconds, peak, device=None):
    return {"seconds": [9.0, 8.0, *seconds], "peak": peak, "device_peak": device, "dtype": "float32"}


def test_a_comparison_is_by_medians_of_the_steps_after_the_warm_up():
    ours = [run_of([1.0, 1.0, 5.0], 2**20), run_of([2.0, 2.0, 2.0], 2**21)]
    trl = [run_of([3.0, 3.0, 3.0], 2**22), run_of([8.0, 8.0, 9.0], 2**20)]
    row, bars = compare(Case("1M", 8, 64, 64), {"ours": ours, "trl": trl})
    assert (row["sdft_jax"], row["TRL"]) == ("1.5 s", "5.5 s")
    assert row["times faster"] == "3.5 (3.0-4.0)"
    assert (row["sdft_jax, peak"], row["TRL, peak"]) == ("2 MiB", "4 MiB")
    assert [one.value for one in bars] == [3.5, 2.0]


def test_a_gpu_is_not_compared_with_a_cpu():
    with pytest.raises(SdftError, match="one side ran on a GPU and the other did not"):
        compare(Case("1M", 8, 64, 64), {"ours": [run_of([1.0], 1, 5)], "trl": [run_of([1.0], 1)]})


def test_results_are_a_table_json_a_picture_and_a_page(tmp_path, capsys):
    ratios = [Bar("a", "seconds", 2.0)]
    measured = Measured(
        "divergence", [{"case": "a", "ours": "1 s"}], ratios, {"every": 1}, "a machine", "idle"
    )
    publish(measured, str(tmp_path))
    assert "1 s" in capsys.readouterr().out
    report = json.loads((tmp_path / "divergence.json").read_text())
    assert report["measured on"] == "a machine; idle"
    assert report["details"] == {"every": 1}
    assert (tmp_path / "divergence.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "| a | 1 s |" in (tmp_path / "README.md").read_text()


def test_loss_and_gradient_are_trls(directory, tmp_path, monkeypatch):
    """Run where TRL is installed."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    pytest.importorskip("trl")
    apart = trl.cross_check("float32")
    assert 0 < max(apart.values()) < trl.TOLERANCE


def test_a_library_that_trains_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(trl, "_process", lambda *_: {"loss": 1e-6, "gradient": 2e-4})
    with pytest.raises(SdftError, match=r"loss and gradient are .* apart, more than 0.0001"):
        trl.cross_check("float32")


def test_our_side_of_the_check_is_the_mean_of_each_rows_divergence(directory, tmp_path):
    """In float64 from whole logits, with the masks written out."""
    model, student = load_model(directory / "model")
    teacher = jax.tree.map(lambda p: 1.1 * p, student)
    arrays = trl_check.random_rows(np.random.default_rng(), model.config.vocab_size)
    loss, gradients = trl_check.ours(model, student, teacher, arrays, tmp_path / "gradients")
    means = []
    for row in range(trl_check.ROWS):
        rows = {name: x[row : row + 1] for name, x in arrays.items()}
        count = rows["completion_mask"].sum()
        logs = []
        for params, side in ((student, "prompt"), (teacher, "teacher")):
            kept = rows[side][rows[f"{side}_mask"]]
            tokens = np.concatenate([kept, rows["completion"][0, :count]])[None]
            logits = np.asarray(model.logits(params, tokens, np.ones_like(tokens, bool)), np.float64)
            logits = logits[0, len(kept) - 1 : -1]
            logs.append(
                logits
                - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
                - logits.max(-1, keepdims=True)
            )
        means.append(np.mean(np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)))
    np.testing.assert_allclose(loss, np.mean(means), rtol=1e-4)
    assert "model.embed_tokens.weight" in gradients


def test_without_trl_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["bench", "trl"]) == 2
    assert "pip install 'sdft_jax[bench]'" in capsys.readouterr().err


def test_the_divergence_is_measured_beside_its_products_and_whole_logits(capsys, tmp_path):
    words = ["--tokens", "8", "16", "--width", "8", "--vocabulary", "32", "--chunk", "4"]
    words += ["--whole-up-to", "8", "--rounds", "1", "--output", str(tmp_path)]
    assert cli.main(["bench", "divergence", *words]) == 0
    assert "products" in capsys.readouterr().out
    report = json.loads((tmp_path / "divergence.json").read_text())
    assert [sorted(each["seconds"]) for each in report["details"]] == [
        ["chunked", "products", "whole"],
        ["chunked", "products"],
    ]


def test_both_sides_of_the_divergence_have_one_value_and_one_gradient():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(12, 8), (32, 8)] * 2
    arrays = tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    (value, _), gradients = divergence.chunked(arrays, 4, single_device())
    expected, expected_gradients = divergence.whole(arrays, 4, single_device())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_products_of_the_divergence_are_all_four_in_the_program():
    shapes = [(16, 8), (32, 8)] * 2
    program = divergence._compile(divergence.products, shapes, "float32", 4, single_device())
    assert matmul_flops(program.as_text()) == 4 * 2 * 16 * 8 * 32


def test_a_row_of_the_divergence_is_in_ratios():
    seconds = {"chunked": [2.0, 2.0, 4.0], "products": [1.0, 1.0, 4.0], "whole": [3.0, 3.0, 3.0]}
    memory = {"chunked": 2**20, "products": 0, "whole": 2**22}
    row, bars = divergence.compare(8, seconds, memory)
    assert row["times its products"] == "2.00 (1.00-2.00)"
    assert row["times less memory"] == "4.0"
    assert [one.value for one in bars] == [0.5, 1.5, 4.0]


def test_decoding_is_measured_beside_the_bandwidth(capsys):
    assert (
        cli.main(
            [
                "bench",
                "decode",
                "--models",
                "0.2M",
                "--batches",
                "2",
                "--prompt",
                "4",
                "--new",
                "3",
                "--rounds",
                "1",
                "--peer",
                "none",
            ]
        )
        == 0
    )
    assert "of the bandwidth limit" in capsys.readouterr().out.replace("\n", " ")


def test_a_token_reads_weights_and_filled_cache():
    model = Model(architecture("0.2M"))
    params = model.abstract_params()
    case = decode.Case("0.2M", 3, 10, 4)
    cache = 2 * 2 * 2 * 32 * 3 * 12  # keys and values, layers, heads, width, rows, slots
    weights = sum(w.size for w in jax.tree.leaves(params))
    assert decode.bytes_per_token(model, params, case) == 4 * (weights + cache)


def test_a_row_of_decoding_is_beside_the_faster_cache_and_without_the_prefill():
    seconds = {"ours": [1.1] * 3, "ours, one token": [0.1] * 3, "static": [2.2] * 3, "dynamic": [3.3] * 3}
    row, bars = decode.compare(decode.Case("1M", 2, 8, 11), seconds, 1.0, limit=0.05)
    assert row["transformers, tokens/s"] == "10 (static cache)"
    assert row["times faster"] == "2.00 (2.00-2.00)"
    assert row["a token"] == "100,000 us"
    assert [one.value for one in bars] == [pytest.approx(2.0), pytest.approx(0.5)]


def test_learning_is_measured_by_its_model_flops(capsys):
    case = train.Case("0.2M", 2, 4, 6, 3)
    found = train.measure(case, "float32", "full", 1)
    assert found["flops"] == train.measure(case, "float32", "none", 1)["flops"]  # recomputing is no work done
    layers, width, mlp, heads = 2, 64, 128, 2
    weights = layers * (width * 32 * (heads + 2 * 2) + heads * 32 * width + 3 * width * mlp)
    student, teacher, scored = 2 * (4 + 3), 2 * (6 + 3), 2 * 3
    products = 6 * weights * student + 2 * weights * teacher
    head = (4 + 2 + 2) * 2048 * width * scored
    assert products + head < found["flops"] < 1.1 * (products + head)  # attention is the rest


def test_a_row_of_learning_is_relative_to_a_large_product():
    found = {"seconds": {"step": [2.0], "product": [1.0]}, "flops": 1e12, "flops of the product": 2e12}
    row, bars = train.compare(train.Case("1M", 2, 4, 6, 3), found | {"peak": 4e12})
    assert (row["of it"], row["of the maker's peak"]) == ("25 %", "12 %")
    assert bars[0].value == 0.25


def test_sdft_is_measured_beside_sft(capsys, tmp_path):
    words = ["--models", "0.2M", "--shapes", "8x4x6x3", "--rounds", "1", "--output", str(tmp_path)]
    assert cli.main(["bench", "sft", *words]) == 0
    (case,) = json.loads((tmp_path / "sft.json").read_text())["details"]
    assert case["flops"]["sdft"] > case["flops"]["sft"] > 0


def test_a_row_of_sdft_over_sft_tells_what_the_flops_leave_unexplained():
    flops, seconds = {"sft": 1.0, "sdft": 2.0}, {"sft": [1.0] * 3, "sdft": [3.0] * 3}
    row, bars = sft.compare(sft.Case("1M", 2, 4, 6, 3), flops, seconds)
    assert (row["times the seconds"], row["seconds over FLOPs"]) == ("3.00 (3.00-3.00)", "1.50")
    assert bars[0].value == pytest.approx(2 / 3)


def test_the_loop_is_measured_beside_its_update(tmp_path):
    words = ["--models", "0.2M", "--shapes", "8x16x3", "--steps", "2", "--output", str(tmp_path)]
    assert cli.main(["bench", "loop", *words]) == 0
    (case,) = json.loads((tmp_path / "loop.json").read_text())["details"]
    assert {side: len(each) for side, each in case["seconds"].items()} == {"loop": 2, "update": 2}
    assert min(*case["seconds"]["loop"], *case["seconds"]["update"]) > 0
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_loop_takes_over_its_update_is_idle_time():
    row, bars = loop.compare(loop.Case("1M", 8, 64, 64), {"loop": [0.5, 0.1, 0.11], "update": [0.088] * 3})
    assert (row["between steps"], row["idle"]) == ("22.0 ms", "20.0 %")
    assert bars[0].value == pytest.approx(0.8)
