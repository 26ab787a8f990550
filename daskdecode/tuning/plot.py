"""Figure of a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

_DECADES_FOR_LOG = 2.0
_MOST_LINES = 8


def plot_scores(table: pd.DataFrame, scoring: str, unbiased: float | None, ax: Any = None) -> Any:
    """Draw a table of settings, the best first, and the score that was had without the scored fold; returns the axes.

    See :meth:`daskdecode.tuning.result.SearchResult.plot`.
    """
    from matplotlib import pyplot as plt  # slow to import, and most searches are not drawn

    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
    score = "mean_test_score" if "mean_test_score" in table else "test_score"
    names = [name for name in map(str, table) if name.startswith("param_") and table[name].map(str).nunique() > 1]
    numeric = [name for name in names if all(_is_number(v) for v in table[name])]
    lines = [name for name in names if name not in numeric[:1]]
    if numeric and len(lines) <= 1 and all(table[name].map(str).nunique() <= _MOST_LINES for name in lines):
        x_name = numeric[0]
        values = table[x_name].astype(float)
        for label, part in table.groupby(table[lines[0]].map(str), sort=True) if lines else [(None, table)]:
            part = part.assign(x=values[part.index]).sort_values("x")
            named = None if label is None else f"{lines[0].removeprefix('param_')} = {label}"
            _line(ax, part["x"], part[score], part.get("std_test_score"), named)
        if (values > 0).all() and np.log10(values.max() / values.min()) >= _DECADES_FOR_LOG:
            ax.set_xscale("log")
        ax.set_xlabel(x_name.removeprefix("param_"))
        best_x = float(values.iloc[0])
    else:
        _line(ax, np.arange(1, len(table) + 1), table[score], table.get("std_test_score"), None, line="")
        ax.set_xlabel("setting, the best first")
        best_x = 1.0
    best = float(table[score].iloc[0])
    ax.plot(best_x, best, "o", mfc="none", mec="C3", ms=11, label=f"best, optimistic: {best:.3f}")
    if unbiased is not None:
        ax.axhline(unbiased, color="0.35", ls="--", lw=1, label=f"without the fold that is scored: {unbiased:.3f}")
    ax.set_ylabel(scoring + (" (mean and sd over folds)" if "std_test_score" in table else ""))
    ax.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _line(ax: Any, x: Any, score: Any, spread: Any, label: str | None, line: str = "-") -> None:
    if spread is not None and line:
        ax.fill_between(x, score - spread, score + spread, alpha=0.15, lw=0)
        spread = None
    ax.errorbar(x, score, yerr=spread, fmt=f"o{line}", ms=4, lw=1, elinewidth=0.6, capsize=2, label=label)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and np.isfinite(float(value))
