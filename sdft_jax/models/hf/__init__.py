"""Reading and writing of Hugging Face checkpoints and tokenizers."""
