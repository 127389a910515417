"""The card of a model: README.md of its directory, with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from sdft_jax.errors import SdftError
from sdft_jax.files import read_json, read_text, regular_size, write_errors, write_text
from sdft_jax.files.hashing import short_digest
from sdft_jax.models.hf.hub import hub_name

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD = "README.md"
_SEAL = "<!-- sdft_jax wrote this card, and writes it again unless it was edited: "
"""The start of a card's last line, before the digest of all others."""
_LARGEST = 1 << 20
"""Maximum size of a card, in bytes."""


@dataclasses.dataclass(frozen=True)
class Base:
    """The model that another one was made from."""

    name: str
    """Its name for readers: on the Hub, of a built-in model, or of its directory without the path."""
    hub: str | None = None
    """Its name on the Hub; None if it has none, or an unknown one."""
    license: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The metadata `license`, `license_name` and `license_link` of its own card."""
    loader: str = "AutoModelForCausalLM"
    """The class of transformers that loads it."""


def find_base(path: str, directory: str, name: str | None = None) -> Base:
    """Return the base model in `directory`, which the setting `path` gives.

    Args:
        path: a directory, a Hub name, or a built-in model.
        directory: the directory of that model.
        name: its name on the Hub, if `path` is a local copy of it.
    """
    hub = name or hub_name(path) or _cached_name(directory)
    local = Path(path).resolve().name if Path(path).is_dir() else path
    config = Path(directory) / "config.json"
    wrapped = config.exists() and "text_config" in read_json(config, "restore it")
    loader = "AutoModelForImageTextToText" if wrapped else Base.loader
    return Base(hub or local, hub, _license(Path(directory), hub), loader)


def _cached_name(directory: str) -> str | None:
    """Return the Hub name of a directory in the cache of the Hub's client, such as
    `models--Qwen--Qwen3-8B/snapshots/REVISION`.
    """
    match = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+$", Path(directory).resolve().as_posix())
    return f"{match[1]}/{match[2]}" if match else None


def _license(directory: Path, hub: str | None) -> dict[str, str]:
    """Return the license in the metadata of a model's card, or else in its config.json; {} without one."""
    found = _metadata(directory / CARD)
    if "license" not in found and (directory / "config.json").exists():
        found = read_json(directory / "config.json", "restore it")
    keys = ("license", "license_name", "license_link")
    license = {key: found[key] for key in keys if isinstance(found.get(key), str)}
    if "license" not in license:
        return {}
    if hub and (link := license.get("license_link")) and "://" not in link:  # a file of the base
        license["license_link"] = f"https://huggingface.co/{hub}/blob/main/{link}"
    return license


def _metadata(card: Path) -> dict[str, Any]:
    """Return the metadata of a card; {} without a card, or for one that cannot be read."""
    from huggingface_hub import metadata_load

    try:
        is_small = regular_size(card, "") <= _LARGEST
        return (metadata_load(card) if is_small else None) or {}
    except Exception:  # no card, or YAML that somebody else wrote
        return {}


def make_card(metadata: ModelCardData, title: str, sections: Mapping[str, str]) -> str:
    """Return the text of a card; a section without a text is left out."""
    parts = [f"---\n{metadata.to_yaml()}\n---", f"# {title}"]
    for heading, text in sections.items():
        if text.strip():
            parts.append(f"## {heading}\n\n{text.strip()}" if heading else text.strip())
    text = "\n\n".join(parts) + "\n\n"
    return f"{text}{_SEAL}{short_digest(text)} -->\n"


def plain_card(base: Base | None, architecture: str, title: str) -> str:
    """Return the card of a checkpoint that no run describes.

    Args:
        base: the model that it was made from; None for a new one.
        architecture: name of its architecture in config.json.
        title: name of the checkpoint.
    """
    source = f", made from {described(base)}" if base else ""
    sections = {
        "": f"A checkpoint of the architecture {architecture}{source}. No run of sdft_jax describes how.",
        "Use": usage(title, base.loader if base else Base.loader),
        "License": license_text(base),
        "Versions": versions_text(versions()),
    }
    return make_card(metadata(base, "transformers", ["sdft_jax"]), title, sections)


def plain_adapter_card(base: Base, rank: int, title: str) -> str:
    """Return the card of adapters that no run describes."""
    sections = {
        "": f"Low-rank adapters (LoRA, rank {rank}) of {described(base)}. No run of sdft_jax describes "
        "how they were trained.",
        "Use": adapter_usage(title, base, rank),
        "License": license_text(base),
        "Versions": versions_text(versions()),
    }
    return make_card(metadata(base, "peft", ["sdft_jax", "lora"]), title, sections)


def metadata(base: Base | None, library: str, tags: list[str], **more: Any) -> ModelCardData:
    """Return the metadata of a card; only a name on the Hub becomes its base model.

    Args:
        base: the base model, whose license the card has.
        library: name of the library that loads the model, as on the Hub.
        tags: tags on the Hub.
        more: further metadata.
    """
    from huggingface_hub import ModelCardData

    if base:
        more |= {"base_model": base.hub, **base.license}
    return ModelCardData(library_name=library, pipeline_tag="text-generation", tags=tags, **more)


def write_card(directory: str | os.PathLike[str], card: str) -> bool:
    """Write the card of a model's directory; return False, and keep its card, if somebody edited that."""
    if is_edited(Path(directory)):
        return False
    with write_errors(Path(directory) / CARD, "fix this, and export the model again"):
        write_text(Path(directory) / CARD, card)
    return True


def is_edited(directory: Path) -> bool:
    """Return True if the card of a directory is not one that `make_card` returned."""
    if not os.path.lexists(directory / CARD):
        return False
    try:
        return not is_sealed(read_text(directory / CARD, "", _LARGEST))
    except SdftError:
        return True


def is_sealed(card: str) -> bool:
    """Return True for the unchanged text of a card that `make_card` returned."""
    text, seal, digest = card.rpartition(_SEAL)
    return bool(seal) and digest == f"{short_digest(text)} -->\n"


def described(base: Base) -> str:
    """Return the name of a base in Markdown, with its link if it is on the Hub."""
    return f"[{base.name}](https://huggingface.co/{base.hub})" if base.hub else f"`{base.name}`"


def license_text(base: Base | None) -> str:
    """Return the section about the license."""
    if base is None:
        return ""
    if not base.license:
        return (
            f"The card of the base model {described(base)} names no license: look it up before you publish."
        )
    name = base.license.get("license_name", base.license["license"])
    link = base.license.get("license_link")
    return f"That of the base model {described(base)}: {f'[{name}]({link})' if link else name}."


def versions() -> dict[str, str]:
    """Return the versions of this library and of JAX."""
    try:
        own = importlib.metadata.version("sdft_jax")
    except importlib.metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        own = "(not installed)"
    return {"sdft_jax": own, "jax": jax.__version__}


def versions_text(versions: Mapping[str, str]) -> str:
    """Return the versions of libraries on one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def usage(name: str, loader: str, template_kwargs: Mapping[str, Any] | None = None) -> str:
    """Return code that loads a checkpoint with transformers and with vLLM.

    Args:
        name: name of the model.
        loader: the class of transformers.
        template_kwargs: the arguments of the chat template with which it was trained.
    """
    more = _vllm_arguments(template_kwargs)
    return f"""\
```python
from transformers import {loader}, AutoTokenizer

name = {_quoted(name)}  # the path of this directory, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = {loader}.from_pretrained(name, dtype="auto")
{_answer(template_kwargs)}```

```python
from vllm import LLM, SamplingParams

answers = LLM({_quoted(name)}).chat({_CHAT}, SamplingParams(temperature=0, max_tokens=64){more})
print(answers[0].outputs[0].text)
```"""


def adapter_usage(name: str, base: Base, rank: int, template_kwargs: Mapping[str, Any] | None = None) -> str:
    """Return code that loads an adapter with PEFT and with vLLM; the arguments are as in `usage`."""
    return f"""\
```python
from peft import PeftModel
from transformers import {base.loader}, AutoTokenizer

name = {_quoted(name)}  # the path of this directory, or its name on the Hub
base = {_quoted(base.name)}
tokenizer = AutoTokenizer.from_pretrained(base)
model = {base.loader}.from_pretrained(base, dtype="auto")
model = PeftModel.from_pretrained(model, name)
{_answer(template_kwargs)}```

```python
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

model = LLM({_quoted(base.name)}, enable_lora=True, max_lora_rank={max(8, 1 << (rank - 1).bit_length())})
answers = model.chat(
    {_CHAT},
    SamplingParams(temperature=0, max_tokens=64),
    lora_request=LoRARequest("adapter", 1, {_quoted(name)}){_vllm_arguments(template_kwargs)},
)
print(answers[0].outputs[0].text)
```"""


def _quoted(text: str) -> str:
    """Return a text as a literal of Python."""
    return json.dumps(text, ensure_ascii=False)


_CHAT = '[{"role": "user", "content": "Hello"}]'


def _answer(template_kwargs: Mapping[str, Any] | None) -> str:
    """Return code that prints a model's answer."""
    arguments = f", **{dict(template_kwargs)!r}" if template_kwargs else ""
    return f"""\
inputs = tokenizer.apply_chat_template(
    {_CHAT}, add_generation_prompt=True, return_dict=True, return_tensors="pt"{arguments}
)
output = model.generate(**inputs, do_sample=False, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def _vllm_arguments(template_kwargs: Mapping[str, Any] | None) -> str:
    return f", chat_template_kwargs={dict(template_kwargs)!r}" if template_kwargs else ""
