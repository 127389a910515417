"""Whole runs that are small enough for tests: six steps of a random model with the tokenizer of the mini
world.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from sdft_jax.config import Config, load_config, to_dict
from sdft_jax.mini.lists import Skill, demonstrations, heldout, validation
from sdft_jax.mini.tokenizer import build_tokenizer
from sdft_jax.models import Model, architecture_from_dict, save_pretrained

SETTINGS = (
    "model.compute_dtype=float32",
    "model.remat=none",
    "mesh.fsdp=1",
    "data.path=mini:blax",
    "data.limit=24",
    "data.max_prompt=64",
    "data.max_teacher_prompt=128",
    "eval.path=mini:blax:heldout",
    "eval.prior=mini:old",
    "eval.task=mini",
    "eval.limit=8",
    "eval.batch_size=8",
    "sampling.max_new_tokens=12",
    "optimizer.learning_rate=1e-3",
    "optimizer.warmup=0",
    "train.steps=6",
    "train.batch_size=8",
    "train.save_every=2",
    "train.eval_every=3",
    "train.rollouts_every=3",
    "train.phases_every=0",
)
TIMINGS = {"seconds", "tokens_per_second", "rollout_tokens_per_second", "learn_tokens_per_second"}
"""Metrics that depend on the speed of the machine."""
TIMEOUT = 900
"""The maximum time to wait for a process, in seconds: a test that hangs fails, a slow machine does not."""


def write_model(directory: Path, tied: bool = False, tokenizer: Any = None, **changes: Any) -> None:
    """Write a random model of 30,000 parameters, scaled up so that its distributions are not uniform.

    Its tokenizer is that of the mini world, unless another one is given; `changes` are keys of config.json.
    """
    tokenizer = tokenizer or build_tokenizer()
    model = Model(
        architecture_from_dict(
            dict(
                architectures=["Qwen3ForCausalLM"],
                model_type="qwen3",
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                max_position_embeddings=256,
                rms_norm_eps=1e-6,
                rope_theta=1e4,
                tie_word_embeddings=tied,
                hidden_act="silu",
                eos_token_id=tokenizer.eos_token_id,
                torch_dtype="float32",
            )
            | changes
        )
    )
    params = jax.tree.map(lambda p: p * 8.0 if np.ptp(p) else p, model.init(jax.random.key(0)))
    save_pretrained(model, params, tokenizer, directory)


def config_of(model: Path | str, output: Path | str, *overrides: str) -> Config:
    """Return the configuration of a run with `SETTINGS` and these overrides."""
    return load_config(None, [f"model.path={model}", f"output={output}", *SETTINGS, *overrides])


def sequence_settings(directory: Path) -> tuple[str, ...]:
    """Return overrides for two stages, of one step and of two, and write their rows into `directory`.

    Both stages are about lists of letters: all prompts have the same width and use the same compiled program.
    """
    stages = []
    for name, steps, skill in (
        ("one", 1, Skill("blax", "reverse", "letters")),
        ("two", 2, Skill("drib", "rotate", "letters")),
    ):
        parts = {"data": demonstrations(skill, 16), "test": heldout(skill, 8), "valid": validation(skill, 8)}
        files = {part: str(directory / f"{name}-{part}.jsonl") for part in parts}
        for part, rows in parts.items():
            Path(files[part]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        stages.append(
            {
                "name": name,
                "data": {"path": files["data"]},
                "eval": {"path": files["test"], "validation": files["valid"]},
                "train": {"steps": steps},
            }
        )
    suites = [{"name": "more", "path": "mini:old:validation", "limit": 4, "teacher": False}]
    return (
        "data.limit=null",
        f"continual.stages={json.dumps(stages)}",
        f"continual.suites={json.dumps(suites)}",
        "train.choose=best",
        "train.eval_every=1",
        "train.save_every=1",
        "checkpoint.keep_last=9",
        "train.rollouts_every=0",
        "sampling.max_new_tokens=10",
    )


def write_config(path: Path, model: Path | str, output: Path | str, *overrides: str) -> str:
    """Write the configuration of a run to a YAML file, and return its path."""
    path.write_text(yaml.safe_dump(to_dict(config_of(model, output, *overrides))))
    return str(path)


def start(
    arguments: Sequence[str], caches: Path, environment: Mapping[str, str] = os.environ
) -> subprocess.Popen:
    """Start a Python process with the session's compilation cache, by default on the platform of this one."""
    environment = {
        **environment,
        "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for the end of a process, and return its exit code and stderr."""
    try:
        _, errors = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"a process still runs after {TIMEOUT} s: {process.communicate()[1]}") from None
    return process.returncode, errors


def wait_until(condition: Callable[[], object], *processes: subprocess.Popen) -> None:
    """Wait for a condition; fail if one of the processes ends before."""
    end = time.monotonic() + TIMEOUT
    while True:
        ended = any(process.poll() is not None for process in processes) or time.monotonic() > end
        if condition():
            return
        if ended:
            for process in processes:
                process.kill()
            raise AssertionError(["the condition did not hold", *(p.communicate()[1] for p in processes)])
        time.sleep(0.01)


def read(path: Path) -> list[dict]:
    """Return the rows of a JSONL file without timings."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def step_names(output: Path) -> list[int]:
    """Return the steps whose checkpoints are complete."""
    return sorted(int(path.name) for path in (output / "checkpoints").iterdir() if path.name.isdigit())


def content_of(directory: Path) -> dict[str, bytes]:
    """Return the content of all files below a directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def write_answers(directory: Path, verdicts: Sequence[bool], role: str = "student", **fields) -> Path:
    """Write the answers.jsonl of an evaluation with these verdicts, one per row; return its directory.

    `fields` replace those of every answer, also by functions of the row.
    """
    directory.mkdir(exist_ok=True)
    with (directory / "answers.jsonl").open("a", encoding="utf-8") as file:
        for row, correct in enumerate(verdicts):
            record = {
                **{"role": role, "row": row, "turn": None, "sample": 0, "input": f"digest {row}"},
                **{"prompt": f"question {row}", "prompt_tokens": 2 + row, "completion": f"answer {correct}"},
                **{"tokens": 3, "truncated": False, "nats": None},
                **{"answer": "yes", "scorer": "exact", "correct": correct, "fault": None},
            }
            record |= {name: value(row) if callable(value) else value for name, value in fields.items()}
            file.write(json.dumps(record) + "\n")
    return directory
