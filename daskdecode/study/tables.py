"""A study's scores in one piece: as an xarray Dataset, and as tables beside the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from daskdecode.models.outcome import versions
from daskdecode.results.result import dataset_description, json_writer, with_sidecar, write_files
from daskdecode.study.record import numbers

Outcome = Mapping[str, Any]

_NOT_METRICS: Final = {"fold", "test_runs", "n_train", "n_test"}
_STEM: Final = "study"


def to_dataset(outcomes: Sequence[Outcome], attributes: Mapping[str, Any]) -> xr.Dataset:
    """Line up what was found for each subject.

    Parameters
    ----------
    outcomes : sequence of mapping
        One a subject, as :mod:`daskdecode.study.record` keeps them.
    attributes : mapping

    Returns
    -------
    Dataset
        See :func:`daskdecode.decode_study`. Eager.
    """
    names = [str(outcome["subject"]) for outcome in outcomes]
    classes = list(dict.fromkeys(str(row["class"]) for outcome in outcomes for row in outcome.get("scores", ())))
    n_folds = max((len(outcome.get("folds", ())) for outcome in outcomes), default=0)
    by_class = {key: np.full((len(names), n_folds, len(classes)), np.nan) for key in ("score", "chance")}
    metrics = list(dict.fromkeys(key for o in outcomes for row in o.get("folds", ()) for key in row if key not in _NOT_METRICS))
    by_fold = {key: np.full((len(names), n_folds), np.nan) for key in metrics}
    counts = {key: np.zeros((len(names), n_folds), dtype=np.int64) for key in ("n_train", "n_test")}
    test_runs = np.full((len(names), n_folds), "", dtype=object)
    for s, outcome in enumerate(outcomes):
        place = {row["fold"]: f for f, row in enumerate(outcome.get("folds", ()))}
        for f, row in enumerate(outcome.get("folds", ())):
            test_runs[s, f] = str(row["test_runs"])
            for key in counts:
                counts[key][s, f] = row[key]
            for key in metrics:
                by_fold[key][s, f] = numbers(row.get(key))
        for row in outcome.get("scores", ()):
            for key, values in by_class.items():
                values[s, place[row["fold"]], classes.index(str(row["class"]))] = numbers(row[key])
    # The chance level of the accuracy (of r2, in a regression), beside that of the score.
    renamed = {"chance": "chance_accuracy" if "accuracy" in metrics else "chance_r2"}
    return xr.Dataset(
        {
            **{key: (("subject", "fold", "class"), values) for key, values in by_class.items()},
            **{renamed.get(key, key): (("subject", "fold"), values) for key, values in by_fold.items()},
            **{key: (("subject", "fold"), values) for key, values in counts.items()},
            **_pvalues(outcomes, classes),
            **{key: ("subject", [_of_summary(o, key) for o in outcomes]) for key in ("n_samples", "n_voxels")},
            "status": ("subject", _text([o["status"] for o in outcomes])),
            "reason": ("subject", _text([o["reason"] for o in outcomes])),
        },
        coords={
            "subject": _text(names),
            "fold": np.arange(n_folds),
            "class": _text(classes),
            "test_runs": (("subject", "fold"), test_runs.astype(str)),
        },
        attrs=dict(attributes),
    )


def _text(values: Sequence[str]) -> np.ndarray:
    return np.array([str(value) for value in values], dtype=np.str_)


def _of_summary(outcome: Outcome, key: str) -> int:
    return int(outcome.get("summary", {}).get(key) or 0)


def _pvalues(outcomes: Sequence[Outcome], classes: Sequence[str]) -> dict[str, Any]:
    """P values of the permutation tests, if there were any."""
    tests = [outcome.get("permutations") or {} for outcome in outcomes]
    if not any(tests):
        return {}
    each = {f"class_{kind}": [[numbers(t.get(f"class_{kind}s", {}).get(c)) for c in classes] for t in tests] for kind in ("pvalue",)}
    fwe = [[numbers(t.get("class_pvalues_fwe", {}).get(c)) for c in classes] for t in tests]
    return {
        "pvalue": ("subject", [numbers(t.get("pvalue")) for t in tests]),
        **{key: (("subject", "class"), values) for key, values in each.items()},
        "class_pvalue_fwe": (("subject", "class"), fwe),
    }


# --- on disk ----------------------------------------------------------------------------------------------------------------------


def subject_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row a subject: what became of it, means over folds, and the reason where it failed."""
    rows = []
    for outcome in outcomes:
        summary = outcome.get("summary", {})
        row: dict[str, Any] = {"participant_id": f"sub-{outcome['subject']}", "status": outcome["status"]}
        row |= {key: summary.get(key) for key in ("n_folds", "n_samples", "n_voxels")}
        for key, value in summary.items():
            if isinstance(value, Mapping) and "mean" in value:
                row |= {key: value["mean"], f"{key}_sd": value["sd"], f"{key}_chance": value["chance"]}
        row |= {"pvalue": (outcome.get("permutations") or {}).get("pvalue")}
        rows.append(row | {"reason": outcome["reason"] or None})
    table = pd.DataFrame(rows)
    order = [*(c for c in table.columns if c != "reason"), "reason"]
    whole = dict.fromkeys(("n_folds", "n_samples", "n_voxels"), "Int64")
    return table[order].astype(whole).dropna(axis=1, how="all")


def score_rows(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row a subject, fold and class, with the columns of a single subject's table."""
    rows = [{"participant_id": f"sub-{o['subject']}", **row} for o in outcomes for row in o.get("scores", ())]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["participant_id", "fold", "test_runs", "class", "score"])


def summarize_study(outcomes: Sequence[Outcome], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Give the headline of a study, JSON-able: mean over subjects of their means over folds, and who failed and why."""
    done = [outcome["summary"] for outcome in outcomes if outcome["status"] == "done"]
    measured = list(dict.fromkeys(key for s in done for key, value in s.items() if isinstance(value, Mapping) and "mean" in value))
    return {
        **attributes,
        "n_subjects": len(outcomes),
        "n_done": len(done),
        "failed": {outcome["subject"]: outcome["reason"] for outcome in outcomes if outcome["status"] == "failed"},
        **{key: _over_subjects([numbers(s[key]["mean"]) for s in done]) for key in measured},
        "versions": versions(),
    }


def _over_subjects(values: Sequence[float]) -> dict[str, float | None]:
    found = pd.Series(values, dtype=float)
    return {key: None if pd.isna(value) else float(value) for key, value in (("mean", found.mean()), ("sd", found.std(ddof=1)))}


def has_tables(folder: Path) -> bool:
    """Whether a folder of results has the tables of a study."""
    return (folder / f"{_STEM}_subjects.tsv").exists()


def write_tables(folder: Path, outcomes: Sequence[Outcome], attributes: Mapping[str, Any]) -> None:
    """Write the study's tables and summary into the root of the results; those of an earlier run are replaced."""
    scores, subjects = score_rows(outcomes), subject_table(outcomes)
    columns = {
        "participant_id": "Subject.",
        "fold": "Number of the fold, from 0.",
        "test_runs": "Runs that were left out.",
        "class": "Class, told from the rest (for two classes: from the other; both have the same values).",
        "score": f"{attributes.get('scoring', 'score')} on the runs left out.",
        "chance": "What an answer that never looks at the data can reach (n/a where there is no such level).",
        "n_train": "Samples trained on.",
        "n_test": "Samples left out.",
        "status": "done or failed.",
        "reason": "Why the subject failed.",
        "n_folds": "Number of folds.",
        "n_samples": "Number of volumes decoded.",
        "n_voxels": "Number of voxels decoded from.",
        "accuracy": "Mean over folds of the share of left-out samples whose class was named rightly.",
        "balanced_accuracy": "Mean over folds of the mean share over classes.",
        "pvalue": "Permutation test of the score.",
    }
    files = {
        **with_sidecar(f"{_STEM}_scores", scores, "Scores of each subject, fold and class.", columns),
        **with_sidecar(f"{_STEM}_subjects", subjects, "What became of each subject; means over folds.", columns),
        f"{_STEM}_summary.json": json_writer(summarize_study(outcomes, attributes)),
        **dataset_description(),
    }
    write_files(folder, files)
