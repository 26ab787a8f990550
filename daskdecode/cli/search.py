"""The command that searches hyperparameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from daskdecode.cli.command import ComputingCommand, print_json
from daskdecode.cli.options import (
    CONFOUNDS,
    CV,
    ENGINE,
    ESTIMATOR,
    LABELS,
    MASK,
    MEMORY_BUDGET,
    SCORING,
    SCREENING,
    SESSION,
    STANDARDIZE,
    parameters,
    raise_or_number,
    seed,
)


@click.command(
    cls=ComputingCommand,
    short_help="Search hyperparameters of one subject.",
    epilog="\b\n"
    "Examples:\n"
    "  daskdecode search study.zarr --subject 01 --labels face,cat --param C=0.001,0.1,10\n"
    "  daskdecode search study.zarr --param 'C=loguniform(1e-5,10)' --method random --n-iter 30 --scheduler local\n",
)
@click.argument("store")
@parameters("space", required=True, help="Values with commas, or loguniform(a,b), uniform(a,b), randint(a,b); may be repeated.")
@click.option("--method", type=click.Choice(["grid", "random"]), default="grid", show_default=True)
@click.option("--n-iter", type=click.IntRange(min=1), default=10, show_default=True, help="Settings that --method random draws.")
@seed("Of the settings that --method random draws.")
@click.option(
    "--error-score",
    callback=raise_or_number,
    default="raise",
    show_default=True,
    metavar="raise|nan|NUMBER",
    help="What a fit that fails scores: nan ranks its setting last, raise ends the search.",
)
@click.option("--no-nested", "nested", flag_value=False, default=True, help="Leave out what the choice is worth on other runs.")
@LABELS
@MASK
@click.option("--subject", metavar="LABEL", help="Needed where the store has several.")
@SESSION
@ESTIMATOR
@CV
@STANDARDIZE
@CONFOUNDS
@ENGINE
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
