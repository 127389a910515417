"""Hugging Face checkpoints and tokenizers in and out."""
