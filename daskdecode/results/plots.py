"""Geometry of the report's charts; the template draws them as SVG, so that they follow the reader's colours and stay sharp in print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

WIDTH = 720.0
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 54.0, 96.0, 14.0, 44.0
MOST_TICKS = 24


@dataclass(frozen=True)
class Mark:
    """A dot: where it is drawn, and what a reader sees on hovering."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A reference line with what to write beside it; ``y_text`` is moved where two texts would overlap."""

    position: float
    text: str
    y_text: float = 0.0


@dataclass(frozen=True)
class Chart:
    """Everything that the template needs to draw one chart; positions are in the units of its viewBox."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    dots: list[Mark] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    mean: Line | None = None
    chance: Line | None = None
    rows: list[Row] = field(default_factory=list)
    label: str = ""


@dataclass(frozen=True)
class Row:
    """One class of a :func:`class_chart`: its name, its mean and its chance level."""

    y: float
    name: str
    mean_x: float | None
    chance_x: float | None
    text: str


def shorten(text: str, most: int = 14) -> str:
    """Cut a long name for an axis; the whole name is in the table."""
    return text if len(text) <= most else text[: most - 1] + "…"


def score_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Choose the ends and ticks of a score axis: 0 to 1 wherever scores lie there, else round numbers around them.

    Returns
    -------
    low, high : float
    ticks : list of float
    """
    finite = [v for v in values if math.isfinite(v)]
    if not finite or (min(finite) >= 0 and max(finite) <= 1):
        return 0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]
    span = max(max(finite) - min(finite), 1e-9)
    step = 10 ** math.floor(math.log10(span))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 4)
    low, high = math.floor(min(finite) / step), math.ceil(max(finite) / step)
    high = max(high, low + 1)
    return low * step, high * step, [n * step for n in range(low, high + 1)]


def format_score(value: float | None) -> str:
    """Give a score with three decimals, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _apart(mean: float, chance: float) -> tuple[float, float]:
    """Move the texts of two lines apart where they would overlap."""
    if abs(mean - chance) >= 28:
        return mean, chance
    middle, sign = (mean + chance) / 2, -1 if mean <= chance else 1
    return middle + sign * 14, middle - sign * 14


def fold_chart(folds: pd.DataFrame, score_name: str) -> Chart:
    """Lay out one dot a fold, with the mean and the chance level.

    Parameters
    ----------
    folds : DataFrame
        One row a fold with ``test_runs``, ``score`` and ``chance``; NaN scores are left out.
    score_name : str
        What the axis is called.

    Returns
    -------
    Chart
    """
    height, mean, chance = 250.0, float(folds["score"].mean()), float(folds["chance"].mean())
    low, high, ticks = score_axis([*folds["score"], *folds["chance"]])
    left, right, top, bottom = MARGIN_LEFT, WIDTH - MARGIN_RIGHT, MARGIN_TOP, height - MARGIN_BOTTOM

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    step = (right - left) / max(len(folds), 1)
    places = [left + step * (n + 0.5) for n in range(len(folds))]
    every = math.ceil(len(folds) / MOST_TICKS)
    names = [str(name) for name in folds["test_runs"]]
    scores = [float(s) for s in folds["score"]]
    most = max(3, int(step * every / 7.5))
    mean_text, chance_text = _apart(y(mean), y(chance)) if math.isfinite(mean) and math.isfinite(chance) else (y(mean), y(chance))
    return Chart(
        *(WIDTH, height, left, right, top, bottom),
        dots=[Mark(x, y(s), f"left out: {n}; {s:.3f}") for x, s, n in zip(places, scores, names, strict=True) if math.isfinite(s)],
        x_ticks=[(x, shorten(n, most)) for x, n in list(zip(places, names, strict=True))[::every]],
        y_ticks=[(y(t), f"{t:.2f}") for t in ticks],
        mean=Line(y(mean), f"mean {mean:.3f}", mean_text) if math.isfinite(mean) else None,
        chance=Line(y(chance), f"chance {chance:.3f}", chance_text) if math.isfinite(chance) else None,
        label=f"{score_name} of each fold",
    )


def class_chart(table: pd.DataFrame, score_name: str) -> Chart:
    """Lay out one row a class with a dot a fold, its mean and its chance level.

    Parameters
    ----------
    table : DataFrame
        As :func:`daskdecode.results.scores.score_table` gives it.
    score_name : str
        What the axis is called.

    Returns
    -------
    Chart
    """
    groups = list(table.groupby("class", sort=False))
    left, right, top = 150.0, WIDTH - 60.0, MARGIN_TOP
    bottom = top + 28.0 * len(groups)
    low, high, ticks = score_axis([*table["score"], *table["chance"]])

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    rows, dots = [], []
    for n, (name, part) in enumerate(groups):
        y, mean, chance = top + 28.0 * (n + 0.5), float(part["score"].mean()), float(part["chance"].mean())
        means = [x(v) if math.isfinite(v) else None for v in (mean, chance)]
        rows.append(Row(y, shorten(str(name), 18), means[0], means[1], format_score(mean)))
        pairs = zip(part["score"].astype(float), part["test_runs"], strict=True)
        dots += [Mark(x(s), y, f"{name}, left out: {runs}; {s:.3f}") for s, runs in pairs if math.isfinite(s)]
    ticks_at = [(x(t), f"{t:.2f}") for t in ticks]
    return Chart(
        WIDTH,
        bottom + MARGIN_BOTTOM,
        left,
        right,
        top,
        bottom,
        dots,
        ticks_at,
        rows=rows,
        label=f"{score_name}, each class against the rest",
    )
