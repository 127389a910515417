"""Make tests/fixtures/greedy.npz: greedy completions of transformers' `generate`.

    python tests/make_sampling_fixture.py [CASE...]

makes those of all cases, or replaces those of the given ones; it requires torch and transformers. Prompts are
ragged and left-padded; the models are the checkpoints of make_fixtures.py. The EOS ids end at least two rows,
and not all of them.
"""

import sys

import numpy as np

from make_fixtures import DIRECTORY, one_of_each_family

PATH = DIRECTORY.parent / "greedy.npz"
CASES = one_of_each_family(phi3="phi4_mini")
PAD, LENGTH, ROWS, WIDTH = 0, 12, 6, 9


def prompts(vocabulary=61, seed=0):
    """Return the tokens and mask of random prompts."""
    rng = np.random.default_rng(seed)
    lengths = np.array([WIDTH, 1, 2, 5, 7, WIDTH])
    mask = np.arange(WIDTH)[None, :] >= WIDTH - lengths[:, None]
    return np.where(mask, rng.integers(3, vocabulary, size=(ROWS, WIDTH)), PAD), mask


def transformers_greedy(model, tokens, mask, eos_ids):
    """Return greedy completions [rows, LENGTH], padded after EOS."""
    import torch

    out = model.generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask, dtype=torch.int64),
        do_sample=False,
        max_new_tokens=LENGTH,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=PAD,
    ).numpy()[:, tokens.shape[1] :]
    return np.pad(out, [(0, 0), (0, LENGTH - out.shape[1])], constant_values=PAD).astype(np.int32)


def eos_from(completions):
    """Return two tokens that end at least two of the completions, but not all of them."""
    for first in sorted(set(completions[:, 3])):
        for second in sorted(set(completions[:, 6]) - {first}):
            ends = np.isin(completions, [first, second])
            if ends.any(1).sum() >= 2 and not ends.any(1).all():
                return [int(first), int(second)]
    raise RuntimeError("no pair of tokens ends some rows but not all rows: change the seed of `prompts`.")


def main():
    from transformers import AutoModelForCausalLM

    arrays = dict(np.load(PATH)) if sys.argv[1:] else {}
    for case in sys.argv[1:] or CASES:
        model = AutoModelForCausalLM.from_pretrained(DIRECTORY / case).float()  # the files are bfloat16
        model.generation_config.eos_token_id = None
        tokens, mask = prompts()
        eos_ids = eos_from(transformers_greedy(model, tokens, mask, ()))
        arrays[f"{case}.eos"] = np.array(eos_ids, np.int32)
        arrays[f"{case}.completion"] = transformers_greedy(model, tokens, mask, eos_ids)
    np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
    sys.exit(main())
