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
    check_places,
    parameters,
    raise_or_number,
    seed,
)


@click.command(
    cls=ComputingCommand,
    check=check_places,
    short_help="Search hyperparameters.",
    epilog="\b\n"
    "Examples:\n"
    "  daskdecode search study.zarr --subject 01 --labels face,cat --param C=0.001,0.1,10\n"
    "  daskdecode search study.zarr --param 'C=loguniform(1e-5,10)' --method random --n-iter 30 --scheduler local\n"
    "  daskdecode search study.zarr --estimator sgd --param alpha=0.001,0.1 --route stream --cv 5        (every subject, pooled)\n"
    "  daskdecode search study.zarr --estimator sgd --param 'alpha=loguniform(1e-5,1)' --method hyperband --n-iter 27 --scheduler local\n",
)
@click.argument("store")
@parameters("space", required=True, help="Values with commas, or loguniform(a,b), uniform(a,b), randint(a,b); may be repeated.")
@click.option("--method", type=click.Choice(["grid", "random", "hyperband"]), default="grid", show_default=True)
@click.option(
    "--route",
    type=click.Choice(["auto", "stream"]),
    default="auto",
    show_default=True,
    help="stream: pool subjects and read them block by block, for estimators that learn so (sgd, gnb, logistic); hyperband always does.",
)
@click.option(
    "--n-iter",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Settings that --method random draws; blocks that the longest-trained models of hyperband see.",
)
@click.option("--n-passes", type=click.IntRange(min=1), default=1, show_default=True, help="How often models of the stream see the data.")
@seed("Of the settings that are drawn, and of the order of blocks.")
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
@click.option(
    "--subject",
    "subjects",
    multiple=True,
    metavar="LABEL",
    help="Needed where the store has several. Of pooled ones, only this; may be repeated.  [default: all]",
)
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

    A search is of one subject. With --route stream or --method hyperband, subjects are pooled: samples are read block by block and never
    are in memory together, and whole subjects (of one subject: runs) are held out, one at a time or in the N folds of --cv.

    With --output, what is done is kept in DIR as it comes: the same command again goes on where a killed one was.
    """
    from daskdecode.cli.workflows import run_search  # not quick to import

    result = run_search(store, output, **ctx.obj, **options)
    if as_json:
        print_json(result.to_dict())
        return
    click.echo(str(result))
    if output is not None:
        click.echo(f"Results: {output}")
