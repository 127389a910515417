"""The processes of `sdft bench trl`: `python -m sdft_jax.studies.bench.trl_sides SIDE FILE`.

SIDE is `prepare` (write the model and the rows), `check`, `ours` or `trl`. FILE is JSON with the keys `size`,
`model`, `rows`, `batch`, `prompt`, `new`, `steps`, `dtype` (float32, bfloat16 or auto), `output` and
`result`, the file to write the measurements to.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from sdft_jax.studies.bench.trl_config import TEMPLATE, trl_config


def prepare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the model and the rows of a case."""
    from sdft_jax.studies.bench.models import write_model, write_rows

    parameters = write_model(settings["size"], settings["model"])
    count = settings["batch"] * settings["steps"]
    write_rows(settings["model"], Path(settings["rows"]), count, settings["prompt"], settings["new"])
    return {"parameters": parameters}


def check(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Compare loss and gradient of the two libraries, for the model and rows that `prepare` wrote."""
    from sdft_jax.studies.bench.trl_check import differences

    return differences(Path(settings["output"]), settings)


def ours(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure each step of the loop behind `sdft train`.

    Seconds are read from the metrics; peak memory does not include saving the model.
    """
    _hide("torch")
    import jax

    from sdft_jax.config import load_config
    from sdft_jax.reporting.hardware import describe_hardware
    from sdft_jax.reporting.sinks import METRICS, read_jsonl
    from sdft_jax.training.loop import train

    template = TEMPLATE.replace("{prompt}", "$question").replace("{privileged_context}", "$demonstration")
    dtype = _dtype(settings, jax.default_backend() != "cpu")
    keys = {
        "model.path": settings["model"],
        "model.param_dtype": dtype,
        "model.compute_dtype": dtype,
        "teacher.dtype": dtype,
        "model.remat": "hidden",
        "data.path": settings["rows"],
        "data.template": json.dumps(template),
        "data.max_prompt": 4096,
        "data.max_teacher_prompt": 4096,
        "data.overlong": "error",
        "output": settings["output"],
        "train.batch_size": settings["batch"],
        "train.steps": settings["steps"],
        "train.save_every": 0,
        "train.phases_every": 0,
        "train.rollouts_every": 0,
        "sampling.max_new_tokens": settings["new"],
        "optimizer.warmup": 0,
        "optimizer.schedule": "constant",
        "mesh.fsdp": 1,
    }
    memory: dict[str, Any] = {}

    def watch(*_: Any) -> dict[str, float]:
        memory.update(peak=peak_memory(), device_peak=_device_stats(jax.devices()[0]))
        return {}

    train(load_config(None, [f"{key}={value}" for key, value in keys.items()]), watch=watch)
    steps = read_jsonl(Path(settings["output"]) / METRICS)
    return memory | {
        "seconds": [step["seconds"] for step in steps],
        "loss": sum(step["loss"] for step in steps) / len(steps),
        "dtype": dtype,
        "machine": describe_hardware(),
    }


def trl(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure each step of TRL's trainer: rollout, teacher, full-logit reverse KL, AdamW, EMA teacher."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.sdft import SDFTTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.step_start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            seconds.append(now - self.step_start)
            self.step_start = now

    rows = [json.loads(line) for line in Path(settings["rows"]).read_text(encoding="utf-8").splitlines()]
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "privileged_context": row["demonstration"],
            }
            for row in rows
        ]
    )
    gpu = torch.cuda.is_available()
    dtype = _dtype(settings, gpu)
    config = trl_config(settings, dtype, use_cpu=not gpu)
    output = SDFTTrainer(settings["model"], config, train_dataset=dataset, callbacks=[Clock()]).train()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("trl", "torch", "transformers")
    )
    return {
        "seconds": seconds,
        "loss": output.training_loss,
        "dtype": dtype,
        "machine": versions,
        "peak": peak_memory(),
        "device_peak": torch.cuda.max_memory_allocated() if gpu else None,
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes.

    On Linux, getrusage would include the memory of the parent before exec; /proc/self/status does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _dtype(settings: Mapping[str, Any], accelerator: bool) -> str:
    if settings["dtype"] == "auto":
        return "bfloat16" if accelerator else "float32"
    return settings["dtype"]


def _device_stats(device: Any) -> int | None:
    """Return the peak bytes in use on an accelerator, or None on a CPU, which does not report them."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _hide(name: str) -> None:
    """Make imports of a package fail, as if it were not installed.

    sdft_jax does not need PyTorch, but transformers imports it if it is installed.
    """

    class Without(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
            return None if fullname.partition(".")[0] == name else super().find_spec(fullname, path, target)

    sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]


def main() -> None:
    """Run the process that the command line selects."""
    side, file = sys.argv[1:]
    settings = json.loads(Path(file).read_text(encoding="utf-8"))
    result = {"prepare": prepare, "check": check, "ours": ours, "trl": trl}[side](settings)
    Path(settings["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
