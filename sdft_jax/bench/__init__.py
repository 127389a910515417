"""Side-by-side measurements, each against a named peer or a physical limit in the same run."""

BENCHES = {
    "trl": "a whole training step against TRL's SDFTTrainer: seconds and memory",
    "decode": "greedy decoding against transformers.generate: tokens a second",
    "divergence": "the chunked divergence against whole logits: seconds and memory",
}
"""Name -> what is measured; `sdft_jax.bench.NAME` has a `main` that takes the words after the name."""
