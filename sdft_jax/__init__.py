"""Self-Distillation Fine-Tuning in JAX (arXiv 2601.19897)."""
