"""Tasks of lm-eval with local rows, in the words of the mini world."""

import json
from pathlib import Path

import numpy as np
import yaml

WORDS = ["a", "b", "c", "d", "e", "f", "red", "blue", "cat", "dog", "cow", "pig", "0", "1", "2", "3", "4"]


def text(rng: np.random.Generator, count: int) -> str:
    """Return words."""
    return " ".join(rng.choice(WORDS, count))


def write_tasks(directory: Path, rows: int = 6) -> Path:
    """Write three tasks: `choice`, `gen` (which has a stop string) and `ppl`."""
    rng = np.random.default_rng(0)
    made = [
        {
            "text": text(rng, rng.integers(3, 20)),
            "choices": [text(rng, count) for count in (1, 1, 3, 2)],
            "label": int(rng.integers(4)),
        }
        for _ in range(rows)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in made))

    def mean(metric: str) -> dict:
        return {"metric": metric, "aggregation": "mean", "higher_is_better": True}

    tasks = {
        "choice": dict(
            output_type="multiple_choice",
            doc_to_text="{{text}}",
            doc_to_choice="choices",
            doc_to_target="label",
            metric_list=[mean("acc"), mean("acc_norm")],
        ),
        "gen": dict(
            output_type="generate_until",
            doc_to_text="{{text}}",
            doc_to_target="{{choices[label]}}",
            generation_kwargs={"until": ["cat"], "max_gen_toks": 20, "do_sample": False},
            metric_list=[mean("exact_match")],
        ),
        "ppl": dict(
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "word_perplexity"}],
        ),
    }
    for name, task in tasks.items():
        write_task(directory, name, file, **task)
    return directory


def write_task(directory: Path, name: str, rows: Path | str, **settings) -> None:
    """Write the YAML file of one task."""
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
    }
    (directory / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | data | settings))
