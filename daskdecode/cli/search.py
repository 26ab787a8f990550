"""The command that searches hyperparameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from daskdecode.cli.command import ComputingCommand, print_json
from daskdecode.cli.options import CV, ESTIMATOR, LABELS, MASK, MEMORY_BUDGET, SCORING, SCREENING, SESSION

_RANGE = re.compile(r"(loguniform|uniform|randint)\(([^,()]+),([^,()]+)\)")


def parameters(_: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, Any]:
    """Read ``C=0.1,1,10`` as a list and ``C=loguniform(1e-4,10)`` as a distribution."""
    found: dict[str, Any] = {}
    for text in values:
        name, equals, given = text.partition("=")
        if not (equals and name.strip() and given.strip()):
            raise click.BadParameter(f"expected NAME=VALUES, such as C=0.1,1,10, but found {text!r}.", param=param)
        if name.strip() in found:
            raise click.BadParameter(f"{name.strip()!r} is given twice: put all of its values into one.", param=param)
        found[name.strip()] = _distribution(given.strip(), param) or [_value(v.strip()) for v in given.split(",")]
    return found


def _distribution(text: str, param: click.Parameter) -> Any:
    matched = _RANGE.fullmatch(text)
    if matched is None:
        return None
    from scipy import stats  # not quick to import

    kind, *bounds = matched.groups()
    try:
        low, high = (int(b) if kind == "randint" else float(b) for b in bounds)
        if not low < high or (kind == "loguniform" and low <= 0):
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{text!r} needs two numbers, the smaller (of loguniform above 0) first.", param=param) from None
    return stats.uniform(low, high - low) if kind == "uniform" else getattr(stats, kind)(low, high)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"none": None, "true": True, "false": False}.get(text.lower(), text)


@click.command(
    cls=ComputingCommand,
    short_help="Search hyperparameters of one subject.",
    epilog="\b\n"
    "Examples:\n"
    "  daskdecode search study.zarr --subject 01 --labels face,cat --param C=0.001,0.1,10\n"
    "  daskdecode search study.zarr --param 'C=loguniform(1e-5,10)' --method random --n-iter 30 --scheduler local\n",
)
@click.argument("store")
@click.option(
    "--param",
    "space",
    multiple=True,
    required=True,
    callback=parameters,
    metavar="NAME=VALUES",
    help="Values with commas, or loguniform(a,b), uniform(a,b), randint(a,b); may be repeated.",
)
@click.option("--method", type=click.Choice(["grid", "random"]), default="grid", show_default=True)
@click.option("--n-iter", type=click.IntRange(min=1), default=10, show_default=True, help="Settings that --method random draws.")
@click.option("--seed", "random_state", type=int, default=0, show_default=True)
@click.option("--no-nested", "nested", flag_value=False, default=True, help="Leave out what the choice is worth on other runs.")
@LABELS
@MASK
@click.option("--subject", metavar="LABEL", help="Needed where the store has several.")
@SESSION
@ESTIMATOR
@CV
@SCORING
@SCREENING
@MEMORY_BUDGET
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder for the table, the figure and a JSON file.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_context
def search(ctx: click.Context, /, store: str, output: Path | None, as_json: bool, **options: Any) -> None:
    """Score every setting of some hyperparameters on STORE, and what choosing the best is worth.

    With --output, scores are kept in DIR as they come: the same command again goes on where a killed one was.
    """
    from daskdecode.cli.workflows import run_search  # not quick to import

    result = run_search(store, output, **ctx.obj, **options)
    if as_json:
        print_json(result.to_dict())
        return
    click.echo(str(result))
    if output is not None:
        click.echo(f"Results: {output}")
