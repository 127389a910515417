"""Adapters in PEFT's format: ours loaded by PEFT, theirs loaded here, and merged ones by transformers."""

import dataclasses
import importlib.util
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from make_fixtures import DIRECTORY, auto_class, tokens_and_mask, transformers_logits
from sdft_jax.algorithm import join
from sdft_jax.config.settings import LoraConfig
from sdft_jax.errors import SdftError
from sdft_jax.models import Model, load_model, save_pretrained
from sdft_jax.models.hf.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    load_adapter,
    open_adapter,
    other_base_note,
    save_adapter,
)
from sdft_jax.models.hf.safetensors_io import read_header
from sdft_jax.models.lora import adapter_params, make_lora
from sdft_jax.types import Sequences
from tiny import adapted, merged, tiny_model

CASES = ("qwen2", "llama32_tied", "gemma3", "gemma3_vision")
TOLERANCE = 1e-4
logits_of = jax.jit(Model.logits, static_argnums=0)
needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
needs_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="needs peft")


def logits(model, params):
    tokens, mask = tokens_and_mask()
    return np.asarray(logits_of(model, params, Sequences(tokens, mask)))[mask]


def peft_logits(base, adapter, merge=False):
    """Return the logits of transformers with an adapter of PEFT, merged by PEFT or not."""
    import torch
    from peft import PeftModel

    model = auto_class(base).from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter).eval()
    model = model.merge_and_unload() if merge else model
    tokens, mask = tokens_and_mask()
    positions = torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
    with torch.no_grad():
        out = model(torch.tensor(tokens), attention_mask=torch.tensor(mask).long(), position_ids=positions)
    return out.logits.numpy()[mask]


def same_when_merged(model):
    """Return False if PEFT merges an adapter of one of two tied matrices into both."""
    tied = model.architecture.tie_word_embeddings
    return not (tied and {"embed", "head"} & set(model.architecture.lora.targets))


STABILIZED = {"rank_stabilized": True, "alpha": 3.5, "targets": ("[qv]", "down")}
OUTER = ({"targets": ("v", "embed", "head")}, {"targets": ("head",)})
OPTIONS = {
    "qwen2": ({}, STABILIZED, *OUTER),
    "llama32_tied": ({}, *OUTER),
    "gemma3": ({}, *OUTER),
    "gemma3_vision": (STABILIZED, OUTER[0]),
}
"""The head and the embedding are separate, tied, scaled and tied, and those of a wrapper; settings that do
not depend on the family have two of them."""
OTHERS = [
    ("qwen35", {}),
    ("qwen35", {"targets": ("delta_.*", "q", "down")}),
    ("phi4_mini", {}),
    ("gemma4", {}),
    ("gemma4_e", {}),
    ("gemma4_unified_vision", {"targets": ("[kv]", "o", "head")}),
    ("qwen35_moe_vision", {}),
]
THEIRS = (
    {"q": "q_proj", "o": "o_proj", "up": "up_proj"},
    {"embed": "embed_tokens", "down": "down_proj"},
    {"embed": "embed_tokens", "head": "lm_head"},
)
FUSED = {"qkv": "qkv_proj", "gate_up": "gate_up_proj"}


@needs_torch
@needs_peft
@pytest.mark.parametrize(
    ("case", "options"), [*((case, options) for case in CASES for options in OPTIONS[case]), *OTHERS]
)
def test_our_adapter_in_peft(case, options, tmp_path):
    plain, base = load_model(DIRECTORY / case)
    model, params = adapted(plain, base, LoraConfig(rank=3, **options), scale=0.1)
    save_adapter(model, params, tmp_path / "adapter", str(DIRECTORY / case))
    ours = logits(model, params)
    assert np.abs(ours - logits(plain, base)).max() > 0.1
    for merge in (False, True) if same_when_merged(model) else (False,):
        theirs = peft_logits(DIRECTORY / case, tmp_path / "adapter", merge)
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@needs_torch
@needs_peft
@pytest.mark.parametrize(
    ("case", "targets"),
    [*itertools.product(CASES, THEIRS), ("phi4_mini", FUSED)],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_their_adapter_here(case, targets, tmp_path):
    """With an adapted embedding or head, their file holds copies of the base's matrices too."""
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    torch.manual_seed(0)
    model = auto_class(DIRECTORY / case).from_pretrained(DIRECTORY / case, dtype=torch.float32)
    config = PeftConfig(
        r=2,
        lora_alpha=6,
        target_modules=list(targets.values()),
        exclude_modules=".*vision_tower.*",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    plain, base = load_model(DIRECTORY / case)
    ours, _ = adapted(plain, base, LoraConfig(rank=2, alpha=6, targets=tuple(targets)))
    params = join(base, load_adapter(ours, tmp_path, "float32", DIRECTORY / case))
    theirs = peft_logits(DIRECTORY / case, tmp_path)
    assert np.abs(logits(ours, params) - logits(plain, base)).max() > 0.1
    np.testing.assert_allclose(logits(ours, params), theirs, atol=TOLERANCE)
    whole = dataclasses.replace(ours, architecture=ours.architecture.merged)
    np.testing.assert_allclose(logits(whole, merged(ours, params)), theirs, atol=TOLERANCE)


@needs_torch
@pytest.mark.parametrize(
    ("case", "targets"),
    [
        *itertools.product(CASES, [("q", "down"), ("embed",), ("head", "v")]),
        ("phi4_mini", ("qkv", "gate_up", "head")),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_merged_checkpoint_in_transformers(case, targets, tmp_path):
    """An adapter of the embedding or the head unties them, so that the merged model is the same function."""
    plain, base = load_model(DIRECTORY / case)
    model, params = adapted(plain, base, LoraConfig(rank=3, targets=targets), scale=0.1)
    save_pretrained(model, params, None, tmp_path / "merged", dtype="float32")
    theirs = transformers_logits(tmp_path / "merged")[tokens_and_mask()[1]]
    np.testing.assert_allclose(logits(model, params), theirs, atol=TOLERANCE)
    np.testing.assert_allclose(logits(*load_model(tmp_path / "merged")), theirs, atol=TOLERANCE)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(model with adapters, its parameters, the directory of its adapters)."""
    model, params = adapted(*tiny_model())
    directory = tmp_path_factory.mktemp("written") / "adapter"
    save_adapter(model, params, directory, "BASE")
    return model, params, directory


def test_written_adapters_are_read_back(written):
    model, params, directory = written
    loaded = load_adapter(model, directory, "float32", "BASE")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, adapter_params(params)))
    config = json.loads((directory / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 16, "BASE")
    tensors = read_header(directory / ADAPTER_WEIGHTS)
    assert len(tensors) == 2 * 2 * 7
    prefix = "base_model.model.model.layers.1.self_attn.o_proj"
    assert tensors[f"{prefix}.lora_A.weight"].shape == (4, 32)
    assert tensors[f"{prefix}.lora_B.weight"].shape == (32, 4)


def test_dtype_of_the_file(written, tmp_path):
    model, params, _ = written
    save_adapter(model, params, tmp_path / "half", "BASE", "bfloat16")
    assert {str(x.dtype) for x in read_header(tmp_path / "half" / ADAPTER_WEIGHTS).values()} == {"bfloat16"}


def test_a_model_without_adapters_is_refused(tmp_path):
    with pytest.raises(SdftError, match=r"no adapters \(lora\.rank=0\): write it as a plain checkpoint"):
        save_adapter(*tiny_model(), tmp_path / "adapter", "BASE")


def test_other_files_are_kept(written, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SdftError, match=r"contains thesis\.tex"):
        save_adapter(*written[:2], tmp_path, "BASE")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, r"adapter_config\.json: the adapter has rank 8, and lora\.rank=4: set lora\.rank=8"),
        ({"lora_alpha": 32}, r"another scale .*: set lora\.alpha=32 and lora\.rank_stabilized=false"),
        ({"use_rslora": True}, r"another scale .*: set lora\.alpha=16\.0 and lora\.rank_stabilized=true"),
        ({"peft_type": "LOHA"}, r"peft_type is 'LOHA': only LORA is supported"),
        ({"use_dora": True}, r"use_dora is not supported .*: merge the adapter into its base"),
        ({"alora_invocation_tokens": [5, 6]}, r"alora_invocation_tokens is not supported"),
        ({"use_qalora": True}, r"use_qalora is not supported"),
        ({"layer_replication": [[0, 2], [0, 2]]}, r"layer_replication is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, r"'pissa_niter_4', which also changes the base model"),
        ({"r": "4"}, r"adapter_config\.json: r is '4', and not an integer"),
        ({"lora_alpha": "much"}, r"adapter_config\.json: lora_alpha is 'much', and not a number"),
    ],
    ids=str,
)
def test_other_adapters_are_refused(written, tmp_path, change, message):
    directory = shutil.copytree(written[2], tmp_path / "adapter")
    config = json.loads((directory / ADAPTER_CONFIG).read_text())
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(SdftError, match=message):
        open_adapter(written[0].architecture, directory, "BASE")


@pytest.mark.parametrize(
    ("changes", "targets", "message"),
    [
        (
            {},
            ("q",),
            r"has the tensor model\.layers\.0\.mlp\.down_proj\..*: it adapts another base model, or other",
        ),
        ({"num_hidden_layers": 3}, None, r"lacks the tensor model\.layers\.2\."),
        (
            {"hidden_size": 64},
            None,
            r"lora_A\.weight has shape \[4, 32\], and .* has \[4, 64\]: it adapts another",
        ),
    ],
    ids=["targets", "layers", "width"],
)
def test_an_adapter_of_another_model_is_refused(written, changes, targets, message):
    architecture = tiny_model(**changes)[0].architecture
    options = LoraConfig(rank=4, **({"targets": targets} if targets else {}))
    architecture = dataclasses.replace(architecture, lora=make_lora(options, architecture.sizes))
    with pytest.raises(SdftError, match=message):
        open_adapter(architecture, written[2], "BASE")


def test_numbers_that_are_not_finite_are_refused(written, tmp_path):
    model, params, _ = written
    layers = {**params["layers"], "k_lora_b": params["layers"]["k_lora_b"] * np.nan}
    save_adapter(model, {**params, "layers": layers}, tmp_path / "adapter", "BASE")
    with pytest.raises(SdftError, match=r"adapter: 1 parameters .* the first is \['layers'\]\['k_lora_b'\]"):
        load_adapter(model, tmp_path / "adapter", "float32", "BASE")


def test_copies_of_another_base_are_refused(tmp_path):
    """PEFT writes the base's embedding beside an adapter of it."""
    plain, base = load_model(DIRECTORY / "qwen2")
    model, params = adapted(plain, base, LoraConfig(rank=2, targets=("embed",)))
    save_adapter(model, params, tmp_path / "adapter", "BASE")
    file = tmp_path / "adapter" / ADAPTER_WEIGHTS
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    tensors = load_file(file)
    copy = np.array(base["embed"])
    save_file(tensors | {name: copy}, file)
    open_adapter(model.architecture, tmp_path / "adapter", DIRECTORY / "qwen2")
    copy[-1, -1] += 1
    save_file(tensors | {name: copy}, file)
    with pytest.raises(SdftError, match=r"differs from model\.embed_tokens\.weight of the base model"):
        open_adapter(model.architecture, tmp_path / "adapter", DIRECTORY / "qwen2")


def test_the_weights_of_another_base_are_refused(tmp_path):
    """The file of an adapter has a digest of its base's weights."""
    model, params = adapted(*load_model(DIRECTORY / "qwen2"))
    save_adapter(model, params, tmp_path / "adapter", "owner/base")
    open_adapter(model.architecture, tmp_path / "adapter", DIRECTORY / "qwen2")
    base = shutil.copytree(DIRECTORY / "qwen2", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, base / "model.safetensors")
    with pytest.raises(
        SdftError, match=r"other weights than those in .* set model\.path .* which was owner/base\."
    ):
        open_adapter(model.architecture, tmp_path / "adapter", base)


@pytest.mark.parametrize(
    ("named", "path", "note"),
    [
        ("owner/base", "owner/Base", None),
        ("owner/base", "me/other", "names the base owner/base, and the model is me/other: compare the two."),
        ("/home/me/base", "me/other", None),
        ("owner/base", "mini", None),
    ],
)
def test_an_adapter_that_names_another_model_on_the_hub_is_reported(written, tmp_path, named, path, note):
    """Without a digest, as PEFT writes adapters."""
    directory = shutil.copytree(written[2], tmp_path / "adapter")
    config = json.loads((directory / ADAPTER_CONFIG).read_text()) | {"base_model_name_or_path": named}
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config))
    sentences = [] if note is None else [f"{directory / ADAPTER_CONFIG} {note}"]
    assert other_base_note(directory, path, str(tmp_path)) == sentences


def test_missing_files_are_named(written, tmp_path):
    with pytest.raises(SdftError, match=r"adapter_config\.json .*give the directory of a PEFT adapter"):
        open_adapter(written[0].architecture, tmp_path, "BASE")
    shutil.copyfile(written[2] / ADAPTER_CONFIG, tmp_path / ADAPTER_CONFIG)
    with pytest.raises(
        SdftError, match=r"adapter_model\.safetensors does not exist: copy it from the adapter, or save"
    ):
        open_adapter(written[0].architecture, tmp_path, "BASE")
