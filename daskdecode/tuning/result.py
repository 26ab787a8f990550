"""What a search found: scores of every setting, the best of them, and what choosing it is worth on samples that had no part in it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from daskdecode.models.outcome import plain
from daskdecode.results.result import check_results_folder, json_writer, jsonable, write_files
from daskdecode.tuning.plot import plot_scores

Floats = NDArray[np.float64]

_MOST_ROWS = 20


@dataclass
class SearchResult:
    """A hyperparameter search. ``str(result)`` is a table.

    Attributes
    ----------
    cv_results_ : dict of str to ndarray or list
        As scikit-learn's searches give it: ``params``, ``param_<name>``, ``split<k>_test_score``, ``mean_test_score``,
        ``std_test_score``, ``rank_test_score``, ``mean_fit_time`` and so on (s). Of Hyperband ``test_score`` on the validation samples
        and ``partial_fit_calls`` instead of splits.
    best_params_ : dict
    best_index_ : int
    best_score_ : float
        Mean score of the best setting. **Optimistic**: the largest of many numbers, each with its own luck.
    nested_scores_ : ndarray of float64, shape (n_folds,), or None
        Score on each outer fold of the setting that the search chooses without it: what the choice is worth on new data; NaN where it is
        not defined, or that fit failed and `error_score` is NaN. Of Hyperband:
        score on each group that was held out from the whole search. None where ``nested=False``.
    nested_params_ : list of dict, or None
        What was chosen without each fold.
    best_decoder_ : Decoder or DecoderRegressor, or None
        Fitted on all samples with the best setting: maps, predictions.
    best_estimator_ : estimator or None
        Of Hyperband, the best model, fitted on the training samples. Of ``route="stream"``, the best setting fitted on all samples:
        dask-ml's ``Incremental``, which goes on learning with ``partial_fit``, or its ``ParallelPostFit``: both predict by blocks.
        It takes samples as ``standardize`` scales them, and of voxels those that screening kept (where ``best_decoder_.coef_`` is not 0).
    method, scoring, estimator : str
    notes_ : list of str
        What a reader of the scores should know.
    """

    cv_results_: dict[str, Any]
    best_index_: int
    method: str
    scoring: str
    estimator: str
    nested_scores_: Floats | None = None
    nested_params_: list[dict[str, Any]] | None = None
    best_decoder_: Any = None
    best_estimator_: Any = None
    notes_: list[str] = field(default_factory=list)

    @property
    def _scores(self) -> Floats:
        """Score of each setting, shape (n_settings,)."""
        name = "mean_test_score" if "mean_test_score" in self.cv_results_ else "test_score"
        return np.asarray(self.cv_results_[name], dtype=np.float64)

    @property
    def best_params_(self) -> dict[str, Any]:
        """The best setting."""
        return dict(self.cv_results_["params"][self.best_index_])

    @property
    def best_score_(self) -> float:
        """Mean score of the best setting; optimistic."""
        return float(self._scores[self.best_index_])

    @property
    def score_(self) -> float | None:
        """Mean of ``nested_scores_`` over the folds where they are defined: the score to report. None where they are not known."""
        if self.nested_scores_ is None:
            return None
        defined = self.nested_scores_[np.isfinite(self.nested_scores_)]
        return float(defined.mean()) if defined.size else float("nan")

    def to_frame(self) -> pd.DataFrame:
        """Return ``cv_results_`` as a table, one row a setting, the best first; rank, parameters and scores before times.

        Of Hyperband the chosen model, then those that were trained longest (``partial_fit_calls``), then by score: the scores of models
        that were given up early are of an earlier stage, and may be higher.
        """
        columns = {name: list(self.cv_results_[name]) for name in sorted(self.cv_results_, key=_place)}
        table = pd.DataFrame(columns)
        return table.sort_values("rank_test_score", kind="stable", ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the models as plain, JSON-able values."""
        table = {k: v if k == "params" else np.ma.filled(np.ma.asarray(v, dtype=object), None) for k, v in self.cv_results_.items()}
        said = {
            "method": self.method,
            "estimator": self.estimator,
            "scoring": self.scoring,
            "score": self.score_,
            "nested_scores": self.nested_scores_,
            "nested_params": self.nested_params_,
            "best_params": self.best_params_,
            "best_score": self.best_score_,
            "best_score_is_optimistic": True,
            "cv_results": table,
            "notes": self.notes_,
        }
        found: dict[str, Any] = jsonable(said)
        return found

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``search.tsv`` (the table), ``search.json`` (everything) and ``search.png`` (the figure), making the folder.

        Each file appears as a whole or not at all.

        Raises
        ------
        DaskDecodeError
            Results cannot be written there.
        """
        from matplotlib.figure import Figure  # slow to import

        figure = Figure(figsize=(6.4, 4), layout="constrained")  # no window, whatever the backend
        self.plot(figure.subplots())
        table = self.to_frame()
        files = {
            "search.tsv": lambda path: table.to_csv(path, sep="\t", index=False, na_rep="n/a"),
            "search.json": json_writer(self.to_dict()),
            "search.png": lambda path: figure.savefig(path, dpi=150),
        }
        write_files(check_results_folder(folder), files)

    def __str__(self) -> str:
        headline = f"{self._scores.size} settings of {self.estimator}, {self.method} search, {self.scoring}"
        best = ", ".join(f"{k}={_shown(v)}" for k, v in self.best_params_.items())
        lines = [headline]
        if self.score_ is not None and self.nested_scores_ is not None:
            n_defined = int(np.isfinite(self.nested_scores_).sum())
            spread = f" +- {np.nanstd(self.nested_scores_, ddof=1):.4f}" if n_defined > 1 else ""
            count = f"{n_defined} of {self.nested_scores_.size}" if n_defined < self.nested_scores_.size else str(n_defined)
            held = "groups held out from the search" if self.method == "hyperband" else "outer folds, each searched without"
            lines.append(f"score {self.score_:.4f}{spread} ({count} {held})")
        lines.append(f"best  {best}: {self.best_score_:.4f} on the samples that chose it, which is optimistic")
        names = [k.removeprefix("param_") for k in self.cv_results_ if k.startswith("param_")]
        scores, ranks = self._scores, np.asarray(self.cv_results_["rank_test_score"])
        order = np.argsort(ranks, kind="stable")[:_MOST_ROWS]
        rows = [["rank", *names, "score", "sd" if "std_test_score" in self.cv_results_ else "calls"]]
        last = self.cv_results_.get("std_test_score", self.cv_results_.get("partial_fit_calls"))
        for k in order:
            params = self.cv_results_["params"][k]
            spread = "" if last is None else (f"{last[k]:.4f}" if isinstance(last[k], float | np.floating) else str(last[k]))
            rows.append([str(ranks[k]), *(_shown(params[n]) if n in params else "" for n in names), f"{scores[k]:.4f}", spread])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if scores.size > _MOST_ROWS:
            lines.append(f"... and {scores.size - _MOST_ROWS} more (to_frame())")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes_)])

    def plot(self, ax: Any = None) -> Any:
        """Draw the score of every setting, with its spread over folds, and the nested score beside it.

        Against the parameter where there is one and its values are numbers (on a logarithmic axis where they span two decades or more);
        else against the rank. A second parameter gives lines of their own.

        Parameters
        ----------
        ax : matplotlib Axes, optional

        Returns
        -------
        matplotlib Axes
        """
        return plot_scores(self.to_frame(), self.scoring, self.score_, ax)


def _place(column: str) -> int:
    """Where a column of ``cv_results_`` is in a table that people read; scikit-learn begins with times."""
    patterns = ("rank_", "param_", "(mean_|std_)?test_score", "(?!.*_time$|params$)", "")
    return next(n for n, pattern in enumerate(patterns) if re.match(pattern, column))


def _shown(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray | list | tuple) and len(value) > 3:
        return f"[{_shown(value[0])} ... {_shown(value[-1])}]"
    return " ".join(str(plain(value)).split())
