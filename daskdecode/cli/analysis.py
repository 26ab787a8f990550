"""Commands that decode: on a study store, and on a simulated one for a first look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from daskdecode.cli.command import INCOMPLETE, ComputingCommand, in_options, print_json
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
    seed,
)


def _sentence(summary: Mapping[str, Any]) -> str:
    """The headline as a line of text."""
    from daskdecode.results.plots import format_score

    many = len(summary["classes"]) > 2
    scores = [("score", summary["scoring"], "one against the rest"), ("accuracy", "accuracy", "all classes")]
    if not many and summary["scoring"] == "accuracy":
        del scores[0]  # of two classes it is the same number
    parts = []
    for key, name, of in scores:
        found = summary[key]
        spread = "" if found["sd"] is None else f" +- {format_score(found['sd'])}"
        chance = None if found["chance"] is None else f"chance {format_score(found['chance'])}"
        noted = ", ".join(filter(None, (of if many else None, chance)))
        parts.append(f"{name} {format_score(found['mean'])}{spread}" + (f" ({noted})" if noted else ""))
    told = " against ".join(summary["classes"]) if len(summary["classes"]) == 2 else f"{len(summary['classes'])} classes"
    optimistic = "; optimistic, as hyperparameters were chosen on the held-out folds" if summary["optimistic"] else ""
    p = f"; p = {summary['pvalue']:.4g} ({summary['n_permutations']} permutations)" if "pvalue" in summary else ""
    return f"{told}, subject {summary['subject']}, {summary['n_folds']} folds: {', '.join(parts)}{p}{optimistic}"


def _study(summary: Mapping[str, Any]) -> str:
    """A study as a table, a line a subject."""
    from daskdecode.results.plots import format_score

    measures = {summary["scoring"]: "score", "accuracy": "accuracy"}
    tested = summary["n_permutations"] > 0
    rows = [["subject", "folds", *measures, *(["p"] if tested else [])]]
    for subject in summary["subjects"]:
        row = [subject["subject"]]
        if subject["status"] == "done":
            row += [str(subject["n_folds"]), *(format_score(subject[key]["mean"]) for key in measures.values() if key in subject)]
            row += [f"{subject['pvalue']:.4g}"] if tested else []
        rows.append(row)
    widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    for n, subject in enumerate(summary["subjects"], start=1):
        if subject["status"] == "failed":
            lines[n] = f"{lines[n].ljust(widths[0])}  failed: {in_options(subject['reason'])}"
    means = [f"{name} {format_score(summary[key]['mean'])}" for name, key in measures.items() if key in summary and summary["n_done"]]
    told = f"{summary['n_done']} of {summary['n_subjects']} subjects are decoded"
    return "\n".join([*lines, told + (f", mean {', '.join(means)}" if means else "")])


def _print(outcome: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(outcome)
        return
    if "subjects" in outcome:
        click.echo(_study(outcome))
        click.echo(f"Results: {outcome['results']}")
        return
    click.echo(_sentence(outcome))
    click.echo(f"Results: {outcome['results']}")
    click.echo(f"Report:  {outcome['report']}")


@click.command(cls=ComputingCommand, short_help="Try it on simulated data.", epilog="\b\nExample:\n  daskdecode demo --output my-demo\n")
@click.option("--output", default="daskdecode-demo", show_default=True, metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
@click.pass_context
def demo(ctx: click.Context, /, output: Path, as_json: bool) -> None:
    """Simulate a study, convert, decode, report: no data, no network, under a minute."""
    from daskdecode.cli.workflows import run_demo

    _print(run_demo(output, say=lambda text: click.echo(text, err=True), **ctx.obj), as_json=as_json)


@click.command(
    cls=ComputingCommand,
    check=check_places,
    short_help="Decode; write maps and a report.",
    epilog="\b\n"
    "Examples:\n"
    "  daskdecode decode study.zarr --labels face,cat --mask vt --subject 01 --output results/\n"
    "  daskdecode decode study.zarr --labels face,cat --output results/          (every subject)\n"
    "  daskdecode decode study.zarr --output results/ --json | jq .accuracy.mean\n",
)
@click.argument("store")
@LABELS
@click.option("--output", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder for maps, tables and the report.")
@MASK
@click.option("--subject", "subjects", multiple=True, metavar="LABEL", help="Only this subject; may be repeated.  [default: all]")
@SESSION
@ESTIMATOR
@parameters("space", help="Values to choose among, as of search, in the place of the estimator's own; may be repeated.")
@CV
@click.option(
    "--tune",
    type=click.Choice(["nested", "held_out"]),
    default="nested",
    show_default=True,
    help="Where hyperparameters are chosen: inside the training runs, or (as nilearn, optimistic) on the fold that is scored.",
)
@STANDARDIZE
@CONFOUNDS
@ENGINE
@SCORING
@SCREENING
@click.option(
    "--permutations",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Test the score against N permutations of the labels, each screened and tuned anew. Of a whole brain a thousand take minutes; "
    "without screening (--screening-percentile 100), of an estimator with inner products, seconds (docs/inference.md).",
)
@click.option(
    "--exchange",
    type=click.Choice(["within_run", "blocks"]),
    default="within_run",
    show_default=True,
    help="What permutations exchange within a run: single volumes, or whole blocks.",
)
@seed("Of the permutations.")
@MEMORY_BUDGET
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
@click.pass_context
def decode(ctx: click.Context, /, store: str, output: Path, as_json: bool, **options: Any) -> None:
    """Decode conditions from STORE; write maps, tables and one HTML report a subject to DIR.

    Of several subjects each is decoded by itself. One that cannot be decoded is named with the reason and stops nobody else; exit status 1
    says that there was one. The same command again does what is missing or has changed.
    """
    from daskdecode.cli.workflows import run_decode

    outcome = run_decode(store, output, **ctx.obj, **options)
    _print(outcome, as_json=as_json)
    if outcome.get("failed"):
        ctx.exit(INCOMPLETE)
