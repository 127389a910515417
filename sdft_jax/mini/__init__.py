"""The embedded small world: tokenizer, skills and base model of the quickstart."""
