"""A word-level tokenizer for the mini worlds, in the form `transformers.AutoTokenizer` loads."""

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

# The fixed sentences of the teacher's prompt are one token each: as words they would be half of it.
SENTENCE_TOKENS = [
    "This is an example for a response to the question:",
    "Now answer with a response of your own, including the thinking process.",
]
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THOUGHT_TOKENS = ["<think>", "</think>"]


def vocabulary(words: Sequence[str]) -> list[str]:
    """The chat template's and the teacher's tokens, then every one of the world's words once, in order."""
    fixed = [*CONTROL_TOKENS, *THOUGHT_TOKENS, *SENTENCE_TOKENS, "<unk>", "system", "user", "assistant"]
    return list(dict.fromkeys([*fixed, *words]))


def build_tokenizer(words: Sequence[str] = lists.WORDS) -> PreTrainedTokenizerFast:
    """One token a word; decoding puts one space between words. The list world's, unless `words` are given."""
    tokens = {word: i for i, word in enumerate(vocabulary(words))}
    core = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    # Not special: a thought is part of the answer, so decoding keeps it when it skips the control tokens.
    plain = [*THOUGHT_TOKENS, *SENTENCE_TOKENS]
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=CHAT_TEMPLATE,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
