"""The card of a run's model: method, data, evaluation, configuration, versions, license.

All facts are those of the run directory. Directories of the machine are left out of paths.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sdft_jax.config import Config, to_dict
from sdft_jax.config.config import path_settings
from sdft_jax.config.settings import LAYERS
from sdft_jax.models import model_directory
from sdft_jax.models.hf.model_card import (
    Base,
    adapter_usage,
    described,
    find_base,
    license_text,
    make_card,
    metadata,
    usage,
    versions,
    versions_text,
)
from sdft_jax.reporting.statistics import wilson
from sdft_jax.reporting.tables import markdown_table
from sdft_jax.training.provenance import public_name

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_PAPER = "[Self-Distillation Enables Continual Learning](https://arxiv.org/abs/2601.19897)"
_CITATION = """\
```bibtex
@article{shenfeld2026self,
  title = {Self-Distillation Enables Continual Learning},
  author = {Shenfeld, Idan and Damani, Mehul and H{\\"u}botter, Jonas and Agrawal, Pulkit},
  journal = {arXiv preprint arXiv:2601.19897},
  year = {2026}
}
```"""
_LOCAL_SECTIONS = ("output", "continual", "mesh", "sharding", "checkpoint", "report", "profile", "debug")
"""Settings of the machine and of reports, which the card leaves out."""
_SCHEDULES = {
    "ema": "exponential moving average of the model's weights, at rate {rate} per step",
    "frozen": "the initial weights",
    "live": "the model's own weights",
    "periodic": "a copy of the model's weights, made every {every} steps",
}
_DIVERGENCES = {1.0: "reverse KL, KL(model ‖ teacher)", 0.0: "forward KL, KL(teacher ‖ model)"}
_COLUMNS = {"accuracy": "new skill", "validation": "validation", "prior": "old skills"}
"""Measured accuracy -> the name of its rows in reports and in the provenance."""


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """The facts about a run's model that its card states."""

    config: Config
    step: int
    """The step of the checkpoint."""
    evaluations: Sequence[Mapping[str, Any]]
    """The rows of evaluations.jsonl."""
    provenance: Mapping[str, Any]
    """The content of provenance.json; {} for a run of an older version."""
    adapter: bool = False
    """True for adapters alone, without their base."""


def run_card(facts: RunFacts, title: str, base_name: str | None = None) -> str:
    """Return the card of a run's model.

    Args:
        facts: the facts.
        title: name of the model, on the Hub or of its directory.
        base_name: name of the base on the Hub, if `model.path` is a local copy of it.
    """
    config = facts.config
    base = find_base(config.model.path, model_directory(config.model.path), base_name)
    lora = config.lora
    before, after = _evaluation(facts, 0), _evaluation(facts, facts.step)
    arguments = config.data.template_kwargs
    use = usage(title, base.loader, arguments)
    if facts.adapter:
        use = adapter_usage(title, base, lora.rank, arguments)
    sections = {
        "": _introduction(facts, base),
        "Method": _method(facts),
        "Data": _data(facts),
        "Evaluation": _evaluation_text(facts, before, after),
        "Use": use,
        "Configuration": _configuration(config),
        "License": license_text(base),
        "Versions": _versions(facts),
        "Citation": _CITATION,
    }
    more: dict[str, Any] = {"base_model_relation": "adapter" if facts.adapter else "finetune"}
    if results := _results(facts, after):
        more |= {"model_name": title, "eval_results": results, "metrics": ["accuracy"]}
    tags = ["sdft_jax", config.method.name, *["self-distillation"] * (config.method.name == "sdft")]
    tags += ["lora"] * bool(lora.rank)
    library = "peft" if facts.adapter else "transformers"
    card = metadata(base, library, tags, datasets=_datasets(facts), **more)
    return make_card(card, title, sections)


def _introduction(facts: RunFacts, base: Base) -> str:
    lora = facts.config.lora
    if facts.adapter:
        kind = f"Low-rank adapters (LoRA, rank {lora.rank}) of {described(base)}"
    else:
        kind = f"A model made from {described(base)}"
    method = facts.config.method
    if not method.trains:
        return f"{kind}, without training."
    name = f"Self-Distillation Fine-Tuning ({_PAPER})" if method.name == "sdft" else method.name
    return f"{kind} by {name}, with sdft_jax. It is the checkpoint of step {facts.step}."


def _method(facts: RunFacts) -> str:
    """Return the method, its teacher, divergence, sampling and optimizer, in words."""
    config, method = facts.config, facts.config.method
    lines = [method.summary]
    if method.teacher and method.context:
        teacher = config.teacher
        words = _SCHEDULES[teacher.schedule if method.teacher == "scheduled" else "frozen"]
        lines.append(f"Teacher: {words.format(rate=teacher.rate, every=teacher.every)}.")
    lines += _chat_template(config)
    phases = [phase for phase in method.phases if phase.loss == "divergence"]
    if phases:
        lines.append(f"Divergence: {_divergence(config, phases[0].alpha)}.")
    if method.sampler:
        sampling = config.sampling
        limits = {"top-k": sampling.top_k, "min-p": sampling.min_p, "top-p": sampling.top_p % 1}
        limited = "".join(f", {name} {value}" for name, value in limits.items() if value)
        lines.append(
            f"Sampling: temperature {sampling.temperature}{limited}, at most {sampling.max_new_tokens} "
            "tokens."
        )
    if method.trains:
        optimizer, train = config.optimizer, config.train
        lines.append(
            f"Training: {facts.step} steps of {train.batch_size} prompts with {optimizer.name}, peak "
            f"learning rate {optimizer.learning_rate} ({optimizer.schedule}), seed {train.seed}."
        )
    lora = config.lora
    if lora.rank:
        quantized = f", on a base quantized to {lora.quantize}" if lora.quantize else ""
        merged = "" if facts.adapter else "; here they are merged into the model's weights"
        targets = ", ".join("the projections of all layers" if x == LAYERS else x for x in lora.targets)
        lines.append(
            f"Adapters: LoRA of rank {lora.rank}, alpha {lora.alpha}, of {targets}{quantized}{merged}."
        )
    return "\n".join(f"- {line}" for line in lines)


def _chat_template(config: Config) -> list[str]:
    """Return the arguments of the chat template and the treatment of thoughts, if they are not defaults."""
    data, words = config.data, []
    if data.template_kwargs:
        words.append(f"with the arguments `{dict(data.template_kwargs)}`")
    if data.teacher_template_kwargs and config.method.context:
        words.append(f"for the teacher with `{dict(data.teacher_template_kwargs)}`")
    lines = [f"Chat template: {', '.join(words)}."] if words else []
    return lines + ["Thoughts in the rows were removed."] * (data.thoughts == "remove")


def _divergence(config: Config, fixed: float | None) -> str:
    divergence = config.divergence
    alpha = divergence.alpha if fixed is None else fixed
    name = _DIVERGENCES.get(alpha, f"generalized Jensen-Shannon divergence with alpha {alpha}")
    support = {
        "full": "over the whole vocabulary",
        "sampled": "estimated from the sampled tokens",
    }.get(divergence.support, f"over the {divergence.top_k} most likely tokens ({divergence.support})")
    return f"{name}, {support}"


def _data(facts: RunFacts) -> str:
    """Return the table of sources; only training rows if the run has no record of them."""
    sources = facts.provenance.get("sources", {})
    if not sources:
        return f"Training rows: `{public_name(facts.config.data.path)}`."
    rows = [
        {
            "rows": name,
            "source": f"`{source['source']}`",
            "number": source["rows"],
            "dropped": f"{source['dropped']}{_checked(source)}",
            "SHA-256 of the files": f"`{source['sha256']}`" if source.get("sha256") else "–",
            "digest of the texts": f"`{source['digest']}`" if source.get("digest") else "–",
        }
        for name, source in sources.items()
    ]
    lines = [*markdown_table(rows), "", "Dropped rows were longer than the limits of the configuration."]
    if any("checked" in source for source in sources.values()):
        lines[-1] += (
            " Of a large source, only a part of the rows was checked before training; any other row over a "
            "limit was replaced by a random one."
        )
    if any(source.get("sha256") for source in sources.values()):
        lines += [
            "",
            "The SHA-256 of a directory is that of the lines that `sha256sum` prints for its files, in order "
            "of their names.",
        ]
    of_rows = {source["digest"] for source in sources.values()}
    digests = {name: x for name, x in facts.provenance["digests"].items() if x not in of_rows}
    named = ", ".join(f"{name} `{digest}`" for name, digest in digests.items())
    lines += ["", f"Digests, 16 digits of SHA-256, of the other inputs: {named}."]
    return "\n".join(lines)


def _checked(source: Mapping[str, Any]) -> str:
    """Return the number of rows that those that were dropped are of, for a large source."""
    return f" of {source['checked']} checked" if "checked" in source else ""


def _datasets(facts: RunFacts) -> list[str] | None:
    """Return the names on the Hub of the sources that the run trained on."""
    sources = facts.provenance.get("sources", {})
    names = [sources[name].get("hub") for name in ("training", "general prompts") if name in sources]
    return [name for name in dict.fromkeys(names) if name] or None


def _evaluation(facts: RunFacts, step: int) -> Mapping[str, Any]:
    """Return the newest evaluation at a step; {} if there was none."""
    return next((row for row in reversed(facts.evaluations) if row["step"] == step), {})


def _evaluation_text(facts: RunFacts, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the table of accuracies before and after training; empty if nothing was measured."""
    rows = []
    if before.keys() & _COLUMNS.keys():
        rows.append(_row(facts, "before training", before))
    if "teacher" in before:
        rows.append(
            {
                "model": "before training, with the demonstration in context",
                "new skill": _accuracy(facts, "new skill", before["teacher"]),
            }
        )
    if facts.step and after.keys() & _COLUMNS.keys():
        rows.append(_row(facts, f"this model (step {facts.step})", after))
    if not rows:
        return ""
    note = f"Accuracy of greedy answers by the scorer `{facts.config.eval.task}`, with 95 % Wilson intervals."
    if any("KL to base" in row for row in rows):
        note += " KL to base: KL(model ‖ base) in nats per token, on the model's own answers to old skills."
    return "\n".join([*markdown_table(rows), "", note])


def _row(facts: RunFacts, model: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model}
    for key, name in _COLUMNS.items():
        if evaluation.get(key) is not None:
            row[name] = _accuracy(facts, name, evaluation[key])
    if evaluation.get("kl_to_base") is not None:
        row["KL to base"] = f"{evaluation['kl_to_base']:.3f}"
    return row


def _accuracy(facts: RunFacts, name: str, accuracy: float) -> str:
    """Return an accuracy with its interval, if the number of rows is known."""
    count = facts.provenance.get("sources", {}).get(name, {}).get("rows")
    if not count:
        return f"{accuracy:.3f}"
    low, high = wilson(round(accuracy * count), count)
    return f"{accuracy:.3f} [{low:.3f}, {high:.3f}]"


def _results(facts: RunFacts, after: Mapping[str, Any]) -> list[EvalResult]:
    """Return the accuracies of the model in the format of the Hub's metadata."""
    from huggingface_hub import EvalResult

    sources = facts.provenance.get("sources", {})
    return [
        EvalResult(
            task_type="text-generation",
            task_name=name,
            dataset_type=sources[name].get("hub") or sources[name]["source"],
            dataset_name=sources[name]["source"],
            metric_type="accuracy",
            metric_name=f"accuracy ({facts.config.eval.task}, greedy)",
            metric_value=after[key],
        )
        for key, name in _COLUMNS.items()
        if after.get(key) is not None and name in sources
    ]


def _versions(facts: RunFacts) -> str:
    """Return the versions that the run recorded, or else those that wrote the model, and the hardware."""
    text = versions_text(facts.provenance.get("versions", versions()))
    hardware = facts.provenance.get("hardware")
    return f"{text}; trained on {hardware}." if hardware else f"{text}."


def _configuration(config: Config) -> str:
    """Return the settings that make the model, as YAML that `sdft train` reads."""
    settings = {key: value for key, value in to_dict(config).items() if key not in _LOCAL_SECTIONS}
    for key, path in path_settings(settings).items():
        section, _, name = key.rpartition(".")
        settings[section] = {**settings[section], name: public_name(path)}
    template = settings["data"]["template"]
    if template.startswith("file:"):
        name = Path(template.removeprefix("file:")).name
        settings["data"] = {**settings["data"], "template": f"file:{name}"}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"<details><summary>Settings</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>"
