"""The sides of `sdft bench trl`, each a process of its own: `python -m sdft_jax.bench.trl_sides SIDE FILE`.

FILE is JSON: `model` (directory), `rows` (JSONL with prompt and demonstration), `batch`, `new`, `steps`,
`output`. Prints JSON: seconds of every step and the process's largest resident memory in bytes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPLATE = "{prompt}\n{privileged_context}"
"""Of the teacher's prompt, on both sides; ours writes $question and $demonstration."""


def ours(settings: Mapping[str, Any]) -> list[float]:
    """Seconds of each step of `sdft train`, from its metrics."""
    from sdft_jax.config import load_config
    from sdft_jax.experiment import run

    template = TEMPLATE.replace("{prompt}", "$question").replace("{privileged_context}", "$demonstration")
    keys = {
        "model.path": settings["model"], "model.compute_dtype": settings["dtype"], "model.remat": "none",
        "data.path": settings["rows"], "data.template": json.dumps(template), "output": settings["output"],
        "train.batch_size": settings["batch"], "train.steps": settings["steps"], "train.save_every": 0,
        "train.phases_every": 0, "train.rollouts_every": 0, "sampling.max_new_tokens": settings["new"],
        "optimizer.warmup": 0, "optimizer.schedule": "constant", "mesh.fsdp": 1,
    }  # fmt: skip
    run(load_config(None, [f"{key}={value}" for key, value in keys.items()]))
    metrics = (Path(settings["output"]) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["seconds"] for line in metrics.splitlines()]


def trl(settings: Mapping[str, Any]) -> list[float]:
    """Seconds of each step of TRL's trainer: rollout, teacher, full-logit reverse KL, AdamW, EMA teacher."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    lines = Path(settings["rows"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "privileged_context": row["demonstration"],
            }
            for row in rows
        ]
    )
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.since = time.perf_counter()

        def on_step_end(self, *_, **__):
            now = time.perf_counter()
            seconds.append(now - self.since)
            self.since = now

    wide = settings["dtype"] == "float32"
    config = SDFTConfig(
        output_dir=settings["output"], per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=1, max_steps=settings["steps"], num_generations=1,
        max_prompt_length=4096, max_completion_length=settings["new"], distillation_mode="full_logits",
        distillation_alpha=1.0, teacher_model_kind="ema", teacher_update_rate=0.01, teacher_sync_steps=1,
        teacher_prompt_template=TEMPLATE, learning_rate=1e-5, lr_scheduler_type="constant",
        save_strategy="no", report_to="none", logging_steps=1000, disable_tqdm=True, bf16=not wide,
        use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=False, gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32" if wide else "bfloat16"},
    )  # fmt: skip
    SDFTTrainer(settings["model"], config, train_dataset=dataset, callbacks=[Clock()]).train()
    return seconds


def main() -> None:
    """One side, from the command line."""
    side, file = sys.argv[1:]
    seconds = {"ours": ours, "trl": trl}[side](json.loads(Path(file).read_text(encoding="utf-8")))
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print("\n" + json.dumps({"seconds": seconds, "peak": peak, "device_peak": _device_peak(side)}))


def _device_peak(side: str) -> int | None:
    """Bytes on the first GPU; None on a CPU."""
    if side == "trl":
        import torch

        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


if __name__ == "__main__":
    main()
