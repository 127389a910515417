"""Eight virtual CPU devices, no accelerator, strict broadcasting; XLA compiles fast rather than well."""

import os
from importlib.metadata import version

# Tests compile much and run little: without optimisation an update compiles in 3 s instead of 20 s.
FAST_COMPILATION = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *(["--xla_cpu_use_fusion_emitters=false"] if version("jaxlib").startswith("0.10.") else []),
]
DEVICES = "--xla_force_host_platform_device_count=8"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), DEVICES, *FAST_COMPILATION]).strip()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
