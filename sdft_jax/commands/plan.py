"""`sdft plan`: the memory, communication and time of an update on TPU topologies, printed and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.plan.candidates import make_candidates, mesh_name
from sdft_jax.plan.estimate import Estimate
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.planner import plan
from sdft_jax.plan.prices import check_price, cost_of
from sdft_jax.plan.show import CAVEAT, compiler, details, row, write
from sdft_jax.reporting.progress import bar
from sdft_jax.reporting.stream import make_console
from sdft_jax.reporting.tables import summary_table


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """The options of `sdft plan` in addition to a configuration."""

    topologies: Sequence[str]
    """Names of topologies, such as v5e-16."""
    mesh: str | None = None
    """`data=N,fsdp=N,tensor=N,expert=N` (each is optional, and one may be -1), or `all`; None for the
    configuration's mesh."""
    rules: Sequence[str] = ()
    """YAML files of sharding rules to compare; empty for the configuration's rules."""
    output: str | None = None
    """The directory for plan.json and plan.png; None to write no files."""
    largest: bool = True
    """True to also estimate the largest batch and confirm the advice, which compiles more programs."""
    price: float | None = None
    """US dollars per chip and hour; None for the list price."""


def run(config: Config, request: PlanRequest) -> list[Estimate]:
    """Plan, print tables and details, write files, and return the estimates.

    Raises:
        SdftError: the request is not valid (before anything is compiled), or the mesh of a single candidate
            does not divide the model or the batch.
    """
    if request.output and Path(request.output).is_file():
        raise SdftError(f"--output {request.output} is a file: give a directory.")
    check_price(request.price)
    candidates = make_candidates(config, request.topologies, request.mesh, request.rules)
    console = make_console()
    with bar("compiling", len(candidates)) as show_progress:
        estimates, left_out = plan(config, candidates, request.largest, show_progress)
    for topology in dict.fromkeys(x.topology for x in estimates):
        _print_topology(console, config, [x for x in estimates if x.topology == topology], request.price)
    for reason in left_out:
        console.print(f"left out: {reason}", highlight=False)
    console.print(f"{CAVEAT} Compiled by {compiler()}.", highlight=False)
    if request.output:
        for path in write(config, estimates, left_out, Path(request.output), request.price):
            console.print(str(path), highlight=False, soft_wrap=True)
    return estimates


def _print_topology(
    console: Console, config: Config, estimates: Sequence[Estimate], price: float | None
) -> None:
    """Print the table of one topology, the reasons for refused meshes, and the details of the best mesh."""
    best, *others = estimates
    title = (
        f"{config.model.path} on {best.topology}, batch {config.train.batch_size}, "
        f"{best.limit / GIB} GiB per device"
    )
    console.print(summary_table([row(x) for x in estimates], title))
    console.print()
    for other in others:
        if other.refusal:
            console.print(f"{mesh_name(other.mesh)}: {other.refusal}", highlight=False)
    for line in details(best, cost_of(config, best, price)):
        console.print(line, highlight=False)
    console.print()
