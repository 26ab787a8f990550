"""One self-contained HTML page about one analysis: what was found, how sure, where, and what was run on what."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import jinja2
import pandas as pd

from daskdecode._version import __version__
from daskdecode.errors import DaskDecodeError
from daskdecode.results.maps import STATISTICS, draw_map
from daskdecode.results.plots import class_chart, fold_chart, format_score
from daskdecode.results.result import jsonable
from daskdecode.results.scores import REGRESSION_METRICS, SCORING_NAMES, fold_scores, is_regressor, scalars, score_table, summarize

MOST_MAPS: Final = 12
"""Classes whose maps are drawn; the others' are in the result files."""


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    """Load the page; labels and file names are untrusted, so every value is escaped and none may be missing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("daskdecode.results", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = format_score
    return environment.get_template("report.html")


def _maps(decoder: Any, background: Any) -> list[dict[str, Any]]:
    """Draw weights and pattern of every class; of two classes the second only, as the first's maps are the same with the sign turned."""
    classes = [str(c) for c in decoder.cv_scores_]
    shown = classes[1:] if len(classes) == 2 else classes[:MOST_MAPS]
    drawn = []
    for name in shown:
        for statistic in ("coef", "pattern"):
            kind = STATISTICS[statistic]
            images = {str(key): image for key, image in getattr(decoder, kind.attribute, {}).items()}
            if name in images:
                png = base64.b64encode(draw_map(images[name], background)).decode()
                drawn.append({"class": name, "title": kind.title, "meaning": kind.meaning, "png": png})
    return drawn


def _confusion(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the confusion matrix: counts, and shares of the true class."""
    rows = []
    for name, counts in zip(table.index, table.to_numpy(), strict=True):
        total = counts.sum()
        cells = [
            {"count": int(c), "share": float(c / total) if total else 0.0, "hit": p == name}
            for p, c in zip(table.columns, counts, strict=True)
        ]
        rows.append({"name": str(name), "total": int(total), "cells": cells})
    return rows


def _folds(decoder: Any, table: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the table of folds; for two classes with the hyperparameters chosen, which are the same for both."""
    metrics = decoder.cv_metrics_.join(fold_scores(table)[["score"]])
    # Of more than two classes, the mean over one-against-rest problems: another number than the accuracy beside it.
    scored = decoder.scoring_ if len(decoder.cv_scores_) <= 2 else f"{decoder.scoring_}, one against the rest"
    header = ["fold", "left out", "trained on", "tested on", scored]
    if is_regressor(decoder):
        measures = [key for key in REGRESSION_METRICS if key != decoder.scoring_]
        header += [REGRESSION_METRICS[key] for key in measures] + ["chance R²"]
    else:
        measures = ["accuracy", "balanced_accuracy"]
        header += ["accuracy", "balanced accuracy", "chance accuracy"]
    columns = ["test_runs", "n_train", "n_test", "score", *measures, "chance"]
    rows = [[fold, *metrics.loc[fold, columns]] for fold in metrics.index]
    last = 1 + len(columns)
    if len(decoder.cv_scores_) <= 2:
        chosen = scalars(list(decoder.cv_params_.values())[-1])
        header += list(chosen)
        rows = [row + [values[n] for values in chosen.values()] for n, row in enumerate(rows)]
    return header, [[format_score(v) if isinstance(v, float) and 1 < i < last else v for i, v in enumerate(r)] for r in rows]


def _chosen(decoder: Any) -> list[dict[str, Any]]:
    """Hyperparameters chosen a fold and class, for more than two classes."""
    if len(decoder.cv_scores_) <= 2:
        return []
    every = {c: scalars(params) for c, params in decoder.cv_params_.items()}
    names = dict.fromkeys(p for params in every.values() for p in params)
    return [{"name": p, "rows": [(c, params[p]) for c, params in every.items() if p in params]} for p in names]


def _provenance(decoder: Any) -> list[tuple[str, Any]]:
    """What was run on what, as far as no other part of the page says it."""
    said = {"warnings", "chosen"}
    found = jsonable(decoder.provenance_).items()
    return [(key.replace("_", " "), value) for key, value in found if key not in said and value not in (None, [], {})]


def _warnings(decoder: Any) -> list[str]:
    """What a reader should know; that the scores are optimistic has a box of its own."""
    warnings = decoder.provenance_.get("warnings") or []
    warnings = [warnings] if isinstance(warnings, str) else [str(w) for w in warnings]
    return [w for w in warnings if not (decoder.optimistic_ and "scores are optimistic" in w)]


def _context(decoder: Any, background: Any, title: str | None, notes: Sequence[str]) -> dict[str, Any]:
    summary, table = summarize(decoder), score_table(decoder)
    name = SCORING_NAMES.get(decoder.scoring_, decoder.scoring_)
    many = len(summary["classes"]) > 2
    folds = decoder.cv_metrics_.rename(columns={"accuracy": "score"}) if many else fold_scores(table)
    fold_score = "accuracy" if many else name
    header, fold_rows = _folds(decoder, table)
    regression = is_regressor(decoder)
    told = f"{len(summary['classes'])} classes" if many else " against ".join(summary["classes"]) or "values"
    return {
        "title": title or f"Decoding {told}",
        "regression": regression,
        "has_weights": hasattr(decoder, "coef_"),
        "version": __version__,
        "summary": summary,
        "score_name": name,
        "many": many,
        "notes": list(notes),
        "warnings": _warnings(decoder),
        "fold_score": fold_score,
        "fold_chart": fold_chart(folds, fold_score),
        "class_chart": class_chart(table, name) if many else None,
        "confusion": [] if regression else _confusion(decoder.confusion_),
        "predicted": [] if regression else [str(c) for c in decoder.confusion_.columns],
        "maps": _maps(decoder, background),
        "n_maps_left_out": max(0, len(summary["classes"]) - MOST_MAPS),
        "fold_header": header,
        "fold_rows": fold_rows,
        "chosen": _chosen(decoder),
        "provenance": _provenance(decoder),
        "plan": str(decoder.plan_),
        "is_mapping": lambda value: isinstance(value, Mapping),
        "is_list": lambda value: isinstance(value, list),
    }


def write_report(
    decoder: Any,
    path: str | os.PathLike[str],
    *,
    background: Any = None,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write one HTML page about a fitted decoder that opens from the disk, without a network, in light and dark, and prints.

    Parameters
    ----------
    decoder : Decoder or DecoderRegressor
        Fitted.
    path : path
        The file to write; an existing one is replaced as a whole, and its folder is made where it does not exist.
    background : Nifti1Image or path, optional
        3-D image to draw the maps over, such as ``dd.mean_image(ds)``; on another grid it is resampled to the maps'.
    title : str, optional
        Heading; default: the classes.
    notes : sequence of str, optional
        Sentences to show below the heading, such as what is known about simulated data.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    DecodingError
        The decoder is not fitted.
    DaskDecodeError
        ``path`` is a folder.

    Notes
    -----
    The same decoder gives the same bytes. Eager; memory is that of a few maps.
    """
    path = Path(path)
    if path.is_dir():
        raise DaskDecodeError(f"The report is one file, but {path} is a folder. Name a file in it, such as {path / 'report.html'}.")
    html = _template().render(_context(decoder, background, title, notes))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".daskdecode-", dir=path.parent) as staged:
        (Path(staged) / path.name).write_text(html, encoding="utf-8")
        (Path(staged) / path.name).replace(path)
    return path
