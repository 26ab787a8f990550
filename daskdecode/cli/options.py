"""Options of every command that decodes, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence

import click


def memory_size(_: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read ``4GB`` as bytes."""
    if value is None:
        return None
    from dask.utils import parse_bytes  # not quick to import

    try:
        nbytes = parse_bytes(value)
        if nbytes > 0:
            return int(nbytes)
    except (ValueError, OverflowError):
        pass
    raise click.BadParameter(f"expected a size such as 4GB or 500MB, but found {value!r}.", param=param)


def label_names(_: click.Context, param: click.Parameter, values: Sequence[str]) -> list[str] | None:
    """Check that every ``--labels`` names something; commas are for whoever knows the labels."""
    if any(not value.replace(",", "").strip() for value in values):
        raise click.BadParameter("expected names separated by commas, such as face,cat.", param=param)
    return list(values) or None


def run_or_number(_: click.Context, param: click.Parameter, value: str) -> str | int:
    """Read ``run`` or a number of folds."""
    if value == "run":
        return value
    if value.isdigit() and int(value) >= 2:
        return int(value)
    raise click.BadParameter(f"expected 'run' or a number of folds from 2, but found {value!r}.", param=param)


LABELS = click.option(
    "--labels",
    multiple=True,
    callback=label_names,
    metavar="face,cat",
    help="Conditions to tell apart; may be repeated.  [default: all but rest]",
)
MASK = click.option("--mask", metavar="NAME|FILE", help="Region to decode from: one of the store's, or an image.  [default: all voxels]")
SESSION = click.option("--session", metavar="LABEL", help="Only this session.  [default: all]")
ESTIMATOR = click.option("--estimator", default="svc", show_default=True)
CV = click.option("--cv", default="run", show_default=True, callback=run_or_number, metavar="run|N", help="Leave one run out, or N folds.")
SCORING = click.option("--scoring", default="roc_auc", show_default=True, help="A scikit-learn scorer, for each class against the rest.")
SCREENING = click.option(
    "--screening-percentile", type=float, default=20, show_default=True, help="Share of a whole brain to keep by F-test; 100 keeps all."
)
MEMORY_BUDGET = click.option(
    "--memory-budget", callback=memory_size, metavar="SIZE", help="Such as 4GB.  [default: half of the free memory]"
)
