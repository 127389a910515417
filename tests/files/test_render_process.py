"""The process that renders chat templates: it writes answers only, and ends with its standard input."""

import pickle
import subprocess
import sys

from sdft_jax.files import render_process
from sdft_jax.files.render_process import NUMBER
from sdft_jax.files.rendering import LIMITS

OPTIONS = {"tokenize": False, "add_generation_prompt": True}


def request(template):
    work = pickle.dumps((template, [{"role": "user", "content": "q"}], OPTIONS))
    body = pickle.dumps((*LIMITS, work))
    return NUMBER.pack(len(body)) + body


def test_answers_in_order_and_the_end():
    run = subprocess.run(
        [sys.executable, render_process.__file__],
        input=request("{{ messages[0].content }}\u00e9") + request("{{ 1 / 0 }}"),
        stdout=subprocess.PIPE,
        check=True,
    )
    answers = b"q\xc3\xa9", b"division by zero"
    expected = [
        NUMBER.pack(len(text)) + bytes([good]) + text for text, good in zip(answers, (1, 0), strict=True)
    ]
    assert run.stdout == b"".join(expected)
