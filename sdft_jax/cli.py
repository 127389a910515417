"""The command line: argument parsing, one function a subcommand."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from sdft_jax.config import Config, load_config, to_dict
from sdft_jax.config.reference import as_help
from sdft_jax.errors import SdftError

DESCRIPTION = (
    "Self-Distillation Fine-Tuning (arXiv 2601.19897): a Hugging Face model in, a Hugging Face model out."
)
EXAMPLES = """\
examples:
  sdft train configs/quickstart.yaml
      teach the embedded model a new skill in a few minutes on a CPU
  sdft train configs/qwen2.5-7b-tooluse.yaml model.path=DIR data.path=FILE output=runs/mine
      your own checkpoint and demonstrations; the same command resumes a run that was stopped
  sdft evaluate DIR FILE --task choice data.demonstration=answer
      accuracy of the model, and of the model with the demonstration in context
  sdft continual configs/continual.yaml
      three skills in turn, SDFT against SFT: what is learned, kept and forgotten
  sdft lab skill --quick
      one of the paper's experiments in small; sdft lab all for all of them
  sdft bench trl --output runs/bench
      seconds and memory of a step beside TRL's, in a table, a picture and JSON
  sdft plan configs/qwen2.5-7b-tooluse.yaml --topology v5e-16 --mesh all
      memory, traffic and estimated time on every mesh of a TPU slice, without a TPU
  sdft sample DIR "What is the boiling point of water?" -o sampling.temperature=0
  sdft export runs/mine exported-model --best

exit codes: 0 done, 1 a fault, other processes did not come, or sdft bench found something worse than before,
2 a mistake that you can mend (one sentence says which), 143 stopped by SIGTERM
"""
TERMINATED = 143
MISTAKE = 2


os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # PyTorch is not missed here


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sdft`; returns the exit code."""
    arguments = _parse(argv)
    try:
        return arguments.command(arguments)
    except SdftError as error:
        print(f"sdft: {error}", file=sys.stderr)
        return MISTAKE
    except Exception as error:
        from sdft_jax.training.checkpoint import storage_reason

        reason = storage_reason(error)
        if reason is None:
            raise
        place = getattr(error, "filename", None) or "the output"
        print(f"sdft: {place}: {reason}: mend that and start again.", file=sys.stderr)
        return MISTAKE


def train(arguments: argparse.Namespace) -> int:
    """`sdft train`."""
    from sdft_jax.commands.train import run

    return _until_terminated(run, arguments)


def continual(arguments: argparse.Namespace) -> int:
    """`sdft continual`."""
    from sdft_jax.commands.continual import run

    return _until_terminated(run, arguments)


def lab(arguments: argparse.Namespace) -> int:
    """`sdft lab`."""
    from sdft_jax.studies.lab.run import run

    run(
        arguments.experiments,
        arguments.output,
        arguments.seeds,
        arguments.quick,
        arguments.workers,
        arguments.publish,
    )
    return 0


def plan(arguments: argparse.Namespace) -> int:
    """`sdft plan`."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: a TPU or GPU that is there stays free
    config = load_config(arguments.config, arguments.overrides)
    from sdft_jax.plan.show import run

    run(
        config,
        arguments.topology,
        arguments.mesh,
        arguments.rules,
        arguments.output,
        largest=not arguments.fast,
    )
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """`sdft bench`."""
    from sdft_jax.studies.bench import run

    return run(arguments.name, arguments.words)


def _until_terminated(run: Callable[[Config], object], arguments: argparse.Namespace) -> int:
    """The exit code of a run that saves itself on SIGTERM; what it compiles is kept for the next one."""
    config = load_config(arguments.config, arguments.overrides)
    _join(config)
    from sdft_jax.training.compile_cache import cache_compilations
    from sdft_jax.training.loop import Interrupted
    from sdft_jax.training.preemption import watch

    watch()
    cache_compilations()
    try:
        run(config)
    except Interrupted as stop:
        print(f"sdft: {stop}", file=sys.stderr)
        return TERMINATED
    return 0


def _join(config: Config) -> None:
    """The other processes of this run, if there are any, which must have the same configuration."""
    from sdft_jax.training.processes import initialize, require_agreement

    initialize()
    require_agreement(to_dict(config))


def evaluate(arguments: argparse.Namespace) -> int:
    """`sdft evaluate`."""
    overrides = [f"model.path={arguments.model}", f"eval.path={arguments.file}", *arguments.overrides]
    if arguments.task:
        overrides.append(f"eval.task={arguments.task}")
    config = load_config(arguments.config, overrides)
    _join(config)
    from sdft_jax.commands.evaluate import measure

    measure(config, arguments.json)
    return 0


def sample(arguments: argparse.Namespace) -> int:
    """`sdft sample`."""
    prompts = arguments.prompts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not prompts or arguments.n < 1:
        raise SdftError("nothing to answer: give a prompt as an argument or on stdin, and -n of at least 1.")
    config = load_config(None, [f"model.path={arguments.model}", *arguments.overrides])
    from sdft_jax.commands.sample import answer

    for prompt, completions in zip(prompts, answer(config, prompts, arguments.n), strict=True):
        for completion in completions:
            print(f"{prompt}\n  -> {completion}" if len(prompts) > 1 or arguments.n > 1 else completion)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """`sdft export`."""
    from sdft_jax.training.export import export

    chosen = export(arguments.run, arguments.directory, arguments.best, arguments.dtype)
    print(f"{chosen} -> {Path(arguments.directory)}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments; key=value may stand before and after options, which argparse alone does not allow."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (
        arguments.command not in (train, continual, evaluate, plan)
        or any(text.startswith("-") for text in rest)
    ):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdft",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    keys = "keys of CONFIG and of key=value overrides:\n\n" + textwrap.indent(as_help(), "  ")

    def add(name, function, summary):
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=keys,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        return command

    command = add("train", train, "train a model by SDFT (or a baseline), or resume a run")
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/quickstart.yaml")
    command.add_argument("overrides", metavar="key=value", nargs="*", help="such as train.batch_size=16")

    command = add(
        "continual", continual, "train one model on stages in order, by any methods; measure what is kept"
    )
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/continual.yaml")
    command.add_argument("overrides", metavar="key=value", nargs="*", help="such as continual.seeds=[0,1,2]")

    _add_lab(commands)
    _add_bench(commands)

    _add_plan(
        add("plan", plan, "what an update needs on a TPU topology, from the TPU compiler, without a TPU")
    )

    command = add(
        "evaluate", evaluate, "accuracy of a model, and of the model with the demonstration in context"
    )
    command.add_argument("model", metavar="MODEL", help="Hugging Face directory or Hub name")
    command.add_argument("file", metavar="FILE", help="JSONL file, dataset directory or name, tfds:NAME")
    command.add_argument("overrides", metavar="key=value", nargs="*")
    command.add_argument("--task", help="scorer: exact, contains, choice, tooluse or mini")
    command.add_argument("--config", help="YAML file to start from")
    command.add_argument("--json", metavar="OUT", help="also write every answer and its verdict to this file")

    command = add("sample", sample, "answer prompts through the model's chat template")
    command.add_argument("model", metavar="MODEL", help="Hugging Face directory, Hub name, or run directory")
    command.add_argument(
        "prompts", metavar="PROMPT", nargs="*", help="user turns; none: one per line of stdin"
    )
    command.add_argument("-n", type=int, default=1, help="completions of each prompt")
    command.add_argument(
        "-o",
        dest="overrides",
        metavar="key=value",
        action="append",
        default=[],
        help="such as sampling.temperature=0.7; may be repeated",
    )

    _add_export(add("export", export, "write a run's checkpoint as a Hugging Face directory"))
    return parser


def _add_export(command: argparse.ArgumentParser) -> None:
    """What `sdft export` takes."""
    command.add_argument("run", metavar="RUN", help="output directory of a run")
    command.add_argument("directory", metavar="DIR", help="directory to write")
    command.add_argument(
        "--best", action="store_true", help="the checkpoint of highest accuracy, not the newest"
    )
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="default: that of the source"
    )


def _add_plan(command: argparse.ArgumentParser) -> None:
    """What `sdft plan` takes besides a configuration."""
    command.add_argument("config", metavar="CONFIG", help="YAML file; its model needs no weights")
    command.add_argument("overrides", metavar="key=value", nargs="*", help="such as train.batch_size=64")
    command.add_argument(
        "--topology",
        action="append",
        required=True,
        metavar="NAME",
        help="such as v5e:4x4 or v5e-16; may be repeated",
    )
    command.add_argument(
        "--mesh", help="data=N,fsdp=N,tensor=N (one may be -1), or all; default: as in CONFIG"
    )
    command.add_argument("--rules", nargs="+", default=[], metavar="FILE", help="sharding rules to compare")
    command.add_argument("--output", metavar="DIR", help="also write plan.json and plan.png there")
    command.add_argument(
        "--fast", action="store_true", help="neither look for the largest batch nor compile what is advised"
    )


def _add_lab(commands: argparse._SubParsersAction) -> None:
    """`sdft lab`, which takes no configuration."""
    from sdft_jax.studies.lab.experiments import EXPERIMENTS

    listed = "\n".join(f"  {name:<12} {what}" for name, (_, what) in EXPERIMENTS.items())
    command = commands.add_parser(
        "lab",
        help="the paper's experiments in small",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The paper's experiments on embedded models; finished trials are kept and not run again.",
        epilog=f"experiments:\n{listed}",
    )
    command.set_defaults(command=lab)
    command.add_argument("experiments", metavar="EXPERIMENT", nargs="+", help="names, or all")
    command.add_argument("--quick", action="store_true", help="one seed, fewer steps: shows that it runs")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    command.add_argument("--output", default="runs/lab", help="directory of trials and reports (runs/lab)")
    command.add_argument("--workers", type=int, help="processes; default: one for each core of a CPU")
    command.add_argument("--publish", metavar="DIR", help="also write tables and pictures into DIR/README.md")


def _add_bench(commands: argparse._SubParsersAction) -> None:
    """`sdft bench`; each measurement reads the words after its name itself."""
    from sdft_jax.studies.bench import BENCHES

    listed = "\n".join(f"  {name:<12} {what}" for name, what in BENCHES.items())
    command = commands.add_parser(
        "bench",
        help="speed and memory, side by side",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measurements against a named peer in one run; sdft bench NAME --help has the options.",
        epilog=f"measurements:\n{listed}",
    )
    command.set_defaults(command=bench)
    command.add_argument("name", metavar="NAME", choices=list(BENCHES), help="one of them")
    command.add_argument(
        "words", metavar="...", nargs=argparse.REMAINDER, help="options, such as --output DIR"
    )


if __name__ == "__main__":
    sys.exit(main())
