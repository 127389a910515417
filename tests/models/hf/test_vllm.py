"""vLLM loads exported models and adapters, and its greedy text is ours, by the code that a card shows.

vLLM may need other versions than this library: VLLM_PYTHON names the Python of an environment that has it.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from runs import TIMEOUT
from sdft_jax import LoraConfig, Speaker, answer, load_config, load_model, load_tokenizer, save_pretrained
from sdft_jax.models.hf.adapter import save_adapter
from tiny import adapted

PYTHON = os.environ.get("VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else None)
pytestmark = pytest.mark.skipif(PYTHON is None, reason="needs vLLM: set VLLM_PYTHON")
PROMPT = "reverse a b c d"
SETTINGS = ("model.path=mini", "data.max_prompt=64", "sampling.temperature=0", "sampling.max_new_tokens=64")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(directory of a base, of adapters and of the two merged; our answers of the base and of the others)."""
    directory = tmp_path_factory.mktemp("exported")
    plain, base = load_model("mini", dtype="float32")
    model, params = adapted(plain, base, LoraConfig(rank=3), scale=0.03)
    save_pretrained(plain, base, None, directory / "base")
    save_adapter(model, params, directory / "adapter", str(directory / "base"))
    save_pretrained(model, params, None, directory / "merged")
    tokenizer = load_tokenizer(str(directory / "base"))

    def ours(model, params):
        speaker = Speaker(model, params, tokenizer, (tokenizer.eos_token_id,))
        return answer(speaker, [PROMPT], load_config(None, SETTINGS))[0][0].strip()

    answers = {"base": ours(plain, base), "merged": ours(model, params)}
    assert answers["base"] != answers["merged"] != ""
    return directory, answers | {"adapter": answers["merged"]}


@pytest.mark.parametrize("name", ["base", "merged", "adapter"])
def test_vllm_answers_as_we_do(exported, name):
    directory, answers = exported
    code = (directory / name / "README.md").read_text().split("```python\n")[2].partition("```")[0]
    code = code.replace('"Hello"', json.dumps(PROMPT))
    for part in ("base", "adapter", "merged"):
        code = code.replace(f"({json.dumps(part)}", f"({json.dumps(str(directory / part))}")
    code = code.replace('1, "adapter")', f"1, {json.dumps(str(directory / 'adapter'))})")
    run = subprocess.run(
        [PYTHON, "-c", code],
        env=os.environ
        | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "PYTHONPATH": "",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].strip() == answers[name]
