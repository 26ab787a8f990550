"""Options of every command that decodes, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


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


_RANGE = re.compile(r"(loguniform|uniform|randint)\(([^,()]+),([^,()]+)\)")


def _parameters(_: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, Any]:
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


def raise_or_number(_: click.Context, param: click.Parameter, value: str) -> str | float:
    """Read ``raise``, ``nan`` or a number."""
    try:
        return value if value == "raise" else float(value)
    except ValueError:
        raise click.BadParameter(f"expected raise, nan or a number, but found {value!r}.", param=param) from None


def parameters(name: str, *, required: bool = False, help: str) -> Callable[[Command], Command]:  # noqa: A002  # click's word
    """Option for values of an estimator's parameters."""
    return click.option("--param", name, multiple=True, required=required, callback=_parameters, metavar="NAME=VALUES", help=help)


def seed(help: str) -> Callable[[Command], Command]:  # noqa: A002
    """Option for the seed of what is drawn."""
    return click.option("--seed", "random_state", type=click.IntRange(min=0), default=0, show_default=True, help=help)


LABELS = click.option(
    "--labels",
    multiple=True,
    callback=label_names,
    metavar="face,cat",
    help="Conditions to tell apart; may be repeated.  [default: all but rest]",
)
MASK = click.option("--mask", metavar="NAME|FILE", help="Region to decode from: one of the store's, or an image.  [default: all voxels]")
SESSION = click.option("--session", metavar="LABEL", help="Only this session.  [default: all]")
ESTIMATOR = click.option(
    "--estimator",
    default="svc",
    show_default=True,
    metavar="NAME",
    help="svc, svc_l1, logistic, logistic_l1, ridge_classifier, lda, gnb, sgd or dummy_classifier (docs/decoding.md).",
)
CV = click.option("--cv", default="run", show_default=True, callback=run_or_number, metavar="run|N", help="Leave one run out, or N folds.")
SCORING = click.option("--scoring", default="roc_auc", show_default=True, help="A scikit-learn scorer, for each class against the rest.")
SCREENING = click.option(
    "--screening-percentile", type=float, default=20, show_default=True, help="Share of a whole brain to keep by F-test; 100 keeps all."
)
STANDARDIZE = click.option(
    "--standardize",
    type=click.Choice(["zscore_run", "zscore_fold", "zscore_sample", "psc", "none"]),
    default="zscore_run",
    show_default=True,
    help="Scale voxels within runs, by the training samples of each fold, or over all samples.",
)
CONFOUNDS = click.option(
    "--confounds",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Table with a row a volume: each fold regresses all columns out of the voxels. Of several subjects, a path with {subject} in it.",
)
ENGINE = click.option(
    "--engine",
    type=click.Choice(["auto", "dual", "direct"]),
    default="auto",
    show_default=True,
    help="Work on inner products (dual) or on the voxels (direct).",
)
MEMORY_BUDGET = click.option(
    "--memory-budget", callback=memory_size, metavar="SIZE", help="Such as 4GB.  [default: half of the free memory]"
)


def check_places(**given: Any) -> None:
    """Look at the store and the folder for results before workers are asked for."""
    from daskdecode.cli import workflows  # not quick to import

    workflows.check_places(**given)
