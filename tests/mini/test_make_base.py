"""`make_base`: encoding, loss weights, batches, training on a toy curriculum, and the command line."""

import subprocess
import sys

import numpy as np
import pytest

from sdft_jax.errors import SdftError
from sdft_jax.mini.curriculum import Curriculum, Kind, Text
from sdft_jax.mini.make_base import Recipe, Size, batches, encode, examine, make_base, model_config
from sdft_jax.mini.tokenizer import build_tokenizer

WORDS = ("say", "one", "two", "three")


def toy() -> Curriculum:
    """Return a curriculum in which the answer to `say X` is `X`, with raw text that counts to three."""
    answers = {"say one": "one", "say two": "two"}

    def draw(kind, rng):
        if kind == "raw":
            return Text(None, "one two three")
        user = str(rng.choice(list(answers)))
        return Text(user, answers[user])

    kinds = {"chat": Kind(4, 7, 2), "raw": Kind(2, 1, 4)}
    exam = {"say": [Text(*pair) for pair in answers.items()], "raw": [Text(None, "one two three")]}
    return Curriculum("toy", WORDS, kinds, draw, lambda: exam)


def test_encode_pads_prompt_left_and_response_right_and_weights_response_only():
    tokenizer = build_tokenizer(WORDS)
    arrays = encode([Text("say one", "two three", masked=(1,))], Kind(1, 9, 5), tokenizer)
    words = tokenizer.convert_ids_to_tokens(arrays["tokens"][0])
    assert words == [
        *["<|endoftext|>"] * 2,
        "<|im_start|>",
        "user",
        "say",
        "one",
        "<|im_end|>",
        "<|im_start|>",
        "assistant",
        "two",
        "three",
        "<|im_end|>",
        *["<|endoftext|>"] * 2,
    ]
    np.testing.assert_array_equal(arrays["mask"][0], [False] * 2 + [True] * 10 + [False] * 2)
    np.testing.assert_array_equal(arrays["weight"][0], [0] * 9 + [1, 0, 1, 0, 0])


def test_encode_gives_raw_text_the_end_of_turn_token_as_its_prompt():
    tokenizer = build_tokenizer(WORDS)
    arrays = encode([Text(None, "one two")], Kind(1, 2, 4), tokenizer)
    words = tokenizer.convert_ids_to_tokens(arrays["tokens"][0])
    assert words == ["<|endoftext|>", "<|im_end|>", "one", "two", "<|im_end|>", "<|endoftext|>"]
    np.testing.assert_array_equal(arrays["weight"][0], [0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize("kind", [Kind(1, 6, 9), Kind(1, 9, 2)], ids=["prompt", "response"])
def test_encode_rejects_text_over_the_limits(kind):
    limits = rf"prompt has 7 tokens \(maximum {kind.prompt}\).*response has 3 \(maximum {kind.response}\)"
    with pytest.raises(SdftError, match=rf"say one.*{limits}.*raise the limits"):
        encode([Text("say one", "two three")], kind, build_tokenizer(WORDS))


def test_batches_have_the_shape_of_their_kind_and_depend_only_on_the_seed():
    curriculum, tokenizer = toy(), build_tokenizer(WORDS)
    first = next(batches(curriculum, tokenizer, seed=3))
    assert first["chat"]["tokens"].shape == (20, 4, 9)
    assert first["raw"]["mask"].shape == (20, 2, 5)
    again, other = (next(batches(curriculum, tokenizer, seed=seed)) for seed in (3, 4))
    np.testing.assert_array_equal(first["chat"]["tokens"], again["chat"]["tokens"])
    assert (first["chat"]["tokens"] != other["chat"]["tokens"]).any()


def test_make_base_learns_a_toy_world_and_the_exam_fails_an_untrained_model():
    curriculum = toy()
    recipe = Recipe(steps=20, learning_rate=1e-2, warmup=4, size=Size(32, 1, 2))
    model, params, tokenizer = make_base(curriculum, recipe)
    assert examine(params, model, tokenizer, curriculum) == {"say": 1.0, "raw": 1.0}
    import jax

    untrained = model.init(jax.random.key(0))
    assert examine(untrained, model, tokenizer, curriculum)["raw"] == 0.0


def test_model_config_has_enough_positions_for_the_longest_text():
    tokenizer = build_tokenizer(WORDS)
    assert model_config(tokenizer, Size(32, 1, 2), 45)["max_position_embeddings"] == 128
    assert model_config(tokenizer, Size(32, 1, 2), 300)["max_position_embeddings"] == 300


def test_command_line_rejects_invalid_number_of_steps(tmp_path):
    command = [sys.executable, "-m", "sdft_jax.mini.make_base", "lists", str(tmp_path), "--steps", "30"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "--steps must be a positive multiple of 20, not 30" in result.stderr
