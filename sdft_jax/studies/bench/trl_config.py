"""The configuration of TRL that corresponds to the defaults of `sdft train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEMPLATE = "{prompt}\n{privileged_context}"
"""The template of the teacher's prompt; sdft_jax writes `$question` and `$demonstration` instead."""


def trl_config(settings: Mapping[str, Any], dtype: str, use_cpu: bool) -> Any:
    """Return TRL options for the defaults of `sdft train`, without saving, logging or rematerialization."""
    from trl.experimental.sdft import SDFTConfig

    return SDFTConfig(
        output_dir=settings["output"],
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=1,
        max_steps=settings["steps"],
        num_generations=1,
        max_prompt_length=4096,
        max_completion_length=settings["new"],
        distillation_mode="full_logits",
        distillation_alpha=1.0,
        teacher_model_kind="ema",
        teacher_update_rate=0.01,
        teacher_sync_steps=1,
        teacher_prompt_template=TEMPLATE,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        logging_steps=settings["steps"],
        disable_tqdm=True,
        bf16=dtype == "bfloat16",
        use_cpu=use_cpu,
        dataloader_pin_memory=False,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": dtype},
    )
