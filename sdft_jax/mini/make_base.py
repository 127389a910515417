"""Train the base model of a mini world from nothing: `python -m sdft_jax.mini.make_base WORLD OUT_DIR`.

A world's curriculum has conversations without a demonstration, where the model answers what it knows and
guesses at the rest, and with one, where it takes what it lacks from the expert. So the finished model is
right about a new task exactly when it is shown it, as a teacher in SDFT must be.

The embedded base is `lists`, size large; it took 13 minutes on one half-busy core of a 2-core Xeon. On
held-out lists, with the parameters beside:

    lists             old skills 0.996, new skills shown 0.995    0.63 M
    lists-medium      old skills 0.625, new skills shown 0.522    0.05 M    --size medium
    lists-small       old skills 0.118, new skills shown 0.280    0.04 M    --size small
    chains            old skills 1.000, new skills shown 0.987    0.61 M    --steps 1200

Without a demonstration, every operation is equally likely to be thought of. Below the size of the embedded
base the numbers are no smooth function of size: some sizes do not find the operations in 900 steps (two
layers: width 36 has 0.234 and 0.822, width 44 has 0.038 and 0.002), others do (width 64: 0.987 and 1.000).
"""

import argparse
import importlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast

from sdft_jax.errors import SdftError
from sdft_jax.mini.curriculum import Curriculum, Kind, Text
from sdft_jax.mini.tokenizer import build_tokenizer
from sdft_jax.models import Model, config_from_dict, save_pretrained

WORLDS = {"lists": "world", "storms": "storms", "chains": "chains"}
"""Module of each world."""
STEPS_PER_CALL = 20


@dataclass(frozen=True)
class Size:
    """Shape of a base model; heads are 32 wide."""

    width: int
    layers: int
    heads: int


SIZES = {"small": Size(48, 1, 2), "medium": Size(40, 2, 2), "large": Size(128, 4, 4)}


@dataclass(frozen=True)
class Recipe:
    """How the base model is trained."""

    steps: int = 900
    learning_rate: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 0
    size: Size = SIZES["large"]


def find_curriculum(name: str) -> Curriculum:
    """The curriculum of the world of that name."""
    return importlib.import_module(f"sdft_jax.mini.{WORLDS[name]}").curriculum()


def model_config(tokenizer: PreTrainedTokenizerFast, size: Size, longest: int) -> dict[str, Any]:
    """config.json of the base model, a Qwen3; `longest` is the most tokens of a text."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": len(tokenizer),
        "hidden_size": size.width,
        "intermediate_size": 2 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": max(128, longest),
        "attention_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def encode(texts: Sequence[Text], kind: Kind, tokenizer: Any) -> dict[str, np.ndarray]:
    """Left-padded prompts, right-padded responses: tokens, mask and loss weights, each [texts, width].

    Raises SdftError for a text over the kind's limits.
    """
    width = kind.prompt + kind.response
    arrays = {
        "tokens": np.full((len(texts), width), tokenizer.pad_token_id, np.int32),
        "mask": np.zeros((len(texts), width), bool),
        "weight": np.zeros((len(texts), width), np.float32),
    }
    prompts = tokenizer([_prompt(text, tokenizer) for text in texts])["input_ids"]
    responses = tokenizer([text.response + tokenizer.eos_token for text in texts])["input_ids"]
    for i, (prompt, response, text) in enumerate(zip(prompts, responses, texts, strict=True)):
        if len(prompt) > kind.prompt or len(response) > kind.response:
            raise SdftError(
                f"{text}: {len(prompt)} and {len(response)} tokens of prompt and response are more than "
                f"{kind.prompt} and {kind.response}: raise the limits of this kind in the curriculum."
            )
        span = slice(kind.prompt - len(prompt), kind.prompt + len(response))
        arrays["tokens"][i, span], arrays["mask"][i, span] = prompt + response, True
        arrays["weight"][i, kind.prompt : span.stop] = 1.0
        arrays["weight"][i, [kind.prompt + j for j in text.unlearned]] = 0.0
    return arrays


def _prompt(text: Text, tokenizer: Any) -> str:
    if text.user is None:
        return tokenizer.eos_token
    turn = [{"role": "user", "content": text.user}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def batches(curriculum: Curriculum, tokenizer: Any, seed: int) -> Iterator[dict[str, Any]]:
    """For each call of the update, and by kind, fresh arrays [STEPS_PER_CALL, rows, width]."""
    rng = np.random.default_rng(seed)

    def fresh(name: str, kind: Kind) -> dict[str, np.ndarray]:
        texts = [curriculum.draw(name, rng) for _ in range(STEPS_PER_CALL * kind.rows)]
        arrays = encode(texts, kind, tokenizer)
        return {key: value.reshape(STEPS_PER_CALL, kind.rows, -1) for key, value in arrays.items()}

    while True:
        yield {name: fresh(name, kind) for name, kind in curriculum.kinds.items()}


def response_logits(params: Any, model: Model, batch: Mapping[str, jax.Array], n: int) -> jax.Array:
    """Logits [rows, n, vocabulary] that predict the last n columns."""
    hidden = model.hidden_states(params, batch["tokens"], batch["mask"])[:, -n - 1 : -1]
    return hidden @ model.head(params).T


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW with warm-up and a cosine to nearly nothing."""
    warmup = min(recipe.warmup, recipe.steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, warmup, recipe.steps, 0.02 * recipe.learning_rate
    )
    adamw = optax.adamw(schedule, b2=0.98, weight_decay=recipe.weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


@partial(jax.jit, static_argnames=("model", "optimizer", "responses"), donate_argnums=(0, 1))
def train(
    params: Any, opt_state: Any, stacked: Any, *, model: Model, optimizer: Any, responses: tuple[int, ...]
) -> tuple[Any, Any, jax.Array]:
    """One update for each of the stacked batches; returns the mean loss.

    `responses` are the response widths of the kinds, in the (sorted) order of the batches' keys.
    """

    def loss(params, batch):
        sums, weights = 0.0, 0.0
        for name, n in zip(sorted(batch), responses, strict=True):
            logits, part = response_logits(params, model, batch[name], n), batch[name]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, part["tokens"][:, -n:])
            sums += jnp.sum(losses * part["weight"][:, -n:])
            weights += jnp.sum(part["weight"])
        return sums / weights

    def step(carry, batch):
        params, opt_state = carry
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), stacked)
    return params, opt_state, losses.mean()


@partial(jax.jit, static_argnames=("model", "n"))
def exact(params: Any, batch: dict[str, jax.Array], *, model: Model, n: int) -> jax.Array:
    """[rows]: each token of the response that counts is the likeliest after those before it."""
    hit = jnp.argmax(response_logits(params, model, batch, n), axis=-1) == batch["tokens"][:, -n:]
    return jnp.all(hit | (batch["weight"][:, -n:] == 0), axis=1)


def examine(params: Any, model: Model, tokenizer: Any, curriculum: Curriculum) -> dict[str, float]:
    """Share of held-out texts, by their name in the curriculum's exam, with the expected greedy response."""
    kinds = curriculum.kinds.values()
    kind = Kind(0, max(kind.prompt for kind in kinds), max(kind.response for kind in kinds))

    def accuracy(texts: Sequence[Text]) -> float:
        return float(exact(params, encode(texts, kind, tokenizer), model=model, n=kind.response).mean())

    return {name: accuracy(texts) for name, texts in curriculum.examine().items()}


def make_base(curriculum: Curriculum, recipe: Recipe) -> tuple[Model, Any, PreTrainedTokenizerFast]:
    """Train the base model."""
    tokenizer = build_tokenizer(curriculum.words)
    longest = max(kind.prompt + kind.response for kind in curriculum.kinds.values())
    model = Model(config_from_dict(model_config(tokenizer, recipe.size, longest)))
    optimizer = make_optimizer(recipe)
    params = model.init(jax.random.key(recipe.seed))
    opt_state = optimizer.init(params)
    stream = batches(curriculum, tokenizer, recipe.seed)
    update = partial(
        train,
        model=model,
        optimizer=optimizer,
        responses=tuple(curriculum.kinds[name].response for name in sorted(curriculum.kinds)),
    )
    with Progress() as progress:
        bar = progress.add_task("training", total=recipe.steps)
        for _ in range(recipe.steps // STEPS_PER_CALL):
            params, opt_state, loss = update(params, opt_state, next(stream))
            progress.update(bar, advance=STEPS_PER_CALL, description=f"loss {float(loss):.3f}")
    return model, params, tokenizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("out_dir")
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help=f"a multiple of {STEPS_PER_CALL}")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.steps % STEPS_PER_CALL:
        parser.error(f"--steps must be a multiple of {STEPS_PER_CALL}")
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed, size=SIZES[arguments.size])
    curriculum = find_curriculum(arguments.world)
    start = time.perf_counter()
    model, params, tokenizer = make_base(curriculum, recipe)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    for name, value in examine(params, model, tokenizer, curriculum).items():
        print(f"{name}: {value:.3f}")
    save_pretrained(model, params, tokenizer, arguments.out_dir)
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (Path(arguments.out_dir) / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


if __name__ == "__main__":
    main()
