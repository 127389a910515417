"""A word-level tokenizer for the built-in tasks, in the format that `transformers.AutoTokenizer` loads."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sdft_jax.mini import lists

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Each fixed sentence of the teacher's prompt is one token; word by word they would be half of the prompt.
SENTENCE_TOKENS = [
    "This is an example for a response to the question:",
    "Now answer with a response of your own, including the thinking process.",
]
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THOUGHT_TOKENS = ["<think>", "</think>"]


def vocabulary(words: Sequence[str]) -> list[str]:
    """Return the tokens of the chat template and the teacher's prompt, then each word once, in order."""
    fixed = [*CONTROL_TOKENS, *THOUGHT_TOKENS, *SENTENCE_TOKENS, "<unk>", "system", "user", "assistant"]
    return list(dict.fromkeys([*fixed, *words]))


def build_tokenizer(words: Sequence[str] = lists.WORDS) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word, which decodes with one space between words.

    The default vocabulary is that of the list world.
    """
    token_ids = {word: i for i, word in enumerate(vocabulary(words))}
    core = Tokenizer(models.WordLevel(token_ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    # A thought is part of the response, so skip_special_tokens must not drop its tokens.
    regular_tokens = [*THOUGHT_TOKENS, *SENTENCE_TOKENS]
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in regular_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=CHAT_TEMPLATE,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
