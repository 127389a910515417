"""`sdft bench trl`: a training step against TRL's SDFTTrainer.

Both train the same checkpoint on the same rows by the same method: one rollout a prompt with the library's
own sampler, full-vocabulary reverse KL, AdamW, an EMA teacher after every step; float32 on a CPU, bfloat16 on
a GPU. Each run is a process of its own, so that its largest memory is its own, and the sides take turns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from transformers import AutoTokenizer

from sdft_jax.bench.results import publish
from sdft_jax.errors import SdftError
from sdft_jax.figures import Bar
from sdft_jax.hub import model_directory
from sdft_jax.models import Model, config_from_dict, save_pretrained
from sdft_jax.report import bar, hardware

SIZES: Mapping[str, Mapping[str, int]] = {
    "0.2M": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 2048},
    "1M": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 2048},
    "4M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 4096},
    "32M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 8192},
}
"""Random Qwen2 models by their parameters, with tied embeddings, 4 query and 2 key heads."""
WARM_UP = 2
"""First steps that are not counted: they compile."""


def main(argv: Sequence[str]) -> None:
    """Run the cases of the command line."""
    parser = argparse.ArgumentParser(prog="sdft bench trl", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=["0.2M", "1M", "4M"])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="prompts a step (8 32)")
    parser.add_argument("--prompts", type=int, nargs="+", default=[256], help="longest prompts (256)")
    parser.add_argument("--new", type=int, default=64, help="tokens of a completion (64)")
    parser.add_argument("--steps", type=int, default=6, help="counted steps of a process (6)")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side, in turns (2)")
    parser.add_argument("--output", metavar="DIR", help="also write trl.json and pictures there")
    a = parser.parse_args(argv)
    missing = [name for name in ("torch", "trl", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise SdftError(f"sdft bench trl needs {', '.join(missing)}: pip install 'sdft_jax[bench]'.")
    cases = [(model, batch, prompt) for model in a.models for prompt in a.prompts for batch in a.batches]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, bar("trl", 2 * a.rounds * len(cases)) as show:
        for number, (model, batch, prompt) in enumerate(cases):
            begun = 2 * a.rounds * number
            settings = _prepare(Path(scratch) / f"case{number}", model, batch, prompt, a.new, a.steps)
            measured = _take_turns(
                settings, a.rounds, lambda done, side, b=begun, m=model: show(b + done, f"{m} {side}")
            )
            rows.append({"model": model, "batch": batch, "prompt": prompt, **_compare(measured)})
        show(2 * a.rounds * len(cases), "")
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("trl", "torch", "transformers")
    )
    publish("trl", rows, f"{hardware()}; {versions}", a.output, _bars(rows))


def _take_turns(settings: Mapping[str, Any], rounds: int, show: Any) -> dict[str, list[dict[str, Any]]]:
    """What each side's processes printed, in turns."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for turn in range(rounds):
        for side, results in found.items():
            show(2 * turn + len(found["ours"]) - len(found["trl"]), side)
            results.append(_run(side, settings, f"{side}{turn}"))
    return found


def _run(side: str, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    directory = Path(settings["directory"]) / name
    directory.mkdir()
    file = directory / "settings.json"
    file.write_text(json.dumps({**settings, "output": str(directory / "run")}), encoding="utf-8")
    command = [sys.executable, "-m", "sdft_jax.bench.trl_sides", side, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SdftError(f"sdft bench trl: the side {side} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _compare(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Median seconds and largest memory of both sides; ratios are TRL's over ours, pair by pair."""
    medians = {
        side: [statistics.median(one["seconds"][WARM_UP:]) for one in every]
        for side, every in measured.items()
    }
    memory = {
        side: max(one["device_peak"] or one["peak"] for one in every) / 2**20
        for side, every in measured.items()
    }
    ratios = [b / a for a, b in zip(medians["ours"], medians["trl"], strict=True)]
    return {
        "ours, s": statistics.median(medians["ours"]),
        "TRL, s": statistics.median(medians["trl"]),
        "times faster": f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})",
        "ours, MiB": round(memory["ours"]),
        "TRL, MiB": round(memory["trl"]),
    }


def _bars(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Bar]]:
    units = {"seconds a step": "s", "MiB at the peak of the process": "MiB"}
    return {
        unit: [
            Bar(f"{row['model']}, batch {row['batch']}", side, float(row[f"{side}, {short}"]))
            for row in rows
            for side in ("ours", "TRL")
        ]
        for unit, short in units.items()
    }


def _prepare(directory: Path, size: str, batch: int, prompt: int, new: int, steps: int) -> dict[str, Any]:
    """A random model and rows of random words: prompts of a quarter of `prompt` tokens up to all of them."""
    directory.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(model_directory("mini"))
    shape = config_from_dict(
        dict(
            architectures=["Qwen2ForCausalLM"], model_type="qwen2", num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1e4,
            tie_word_embeddings=True, hidden_act="silu", torch_dtype="float32",
            eos_token_id=tokenizer.eos_token_id, **SIZES[size],
        )
    )  # fmt: skip
    model = Model(shape)
    save_pretrained(model, model.init(jax.random.key(0)), tokenizer, directory / "model")
    rng, words = np.random.default_rng(0), sorted(word for word in tokenizer.get_vocab() if word.isalpha())
    lengths = rng.integers(prompt // 4, prompt - 16, size=batch * (steps + WARM_UP))
    rows = [
        {"prompt": " ".join(rng.choice(words, n)), "demonstration": " ".join(rng.choice(words, new))}
        for n in lengths
    ]
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return {
        "directory": str(directory), "model": str(directory / "model"), "rows": str(file), "batch": batch,
        "new": new, "steps": steps + WARM_UP, "dtype": dtype,
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
