"""What is told of a cross-validated decode: predictions, metrics, warnings, the record of what was run on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, mean_absolute_error, r2_score

from daskdecode._version import __version__
from daskdecode.engine.crossval import CrossValidated
from daskdecode.engine.design import Split
from daskdecode.engine.plan import Plan
from daskdecode.models.samples import Quality, Samples
from daskdecode.models.splitters import mixes_groups
from daskdecode.quiet import quiet


def label_of(decision: NDArray[np.float64], classes: NDArray[Any]) -> NDArray[Any]:
    """Labels of decision values: the sign for two classes, shape (n_samples,), else the largest of (n_samples, n_classes)."""
    codes = (decision > 0).astype(np.intp) if decision.ndim == 1 else decision.argmax(axis=1)
    return np.asarray(classes[codes])


def by_name(params: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn a list of settings into lists by name."""
    return {name: [p[name] for p in params] for name in params[0]}


def predictions(samples: Samples, splits: Sequence[Split], classes: NDArray[Any], decision: NDArray[np.float64]) -> pd.DataFrame:
    """Out-of-fold predictions, a row for each test sample of each fold.

    Parameters
    ----------
    samples : Samples
    splits : sequence of (train, test)
    classes : ndarray, shape (n_classes,)
    decision : ndarray of float64, shape (n_folds, n_problems, n_samples)
        Of each fold's models on all samples.
    """
    rows = []
    for fold, (_, test) in enumerate(splits):
        values = decision[fold][:, test].T
        table = pd.DataFrame({"sample": test, "fold": fold})
        table["run"] = "" if samples.groups is None else samples.groups[test]
        table["label"] = np.asarray(samples.y)[test]
        table["predicted"] = label_of(values[:, 0] if classes.size == 2 else values, classes)
        for c, label in enumerate(classes):
            table[f"decision_{label}"] = values[:, c] if classes.size > 2 else values[:, 0] * (1 if c else -1)
        rows.append(table)
    return pd.concat(rows, ignore_index=True)


def metrics(table: pd.DataFrame, splits: Sequence[Split], y: NDArray[Any]) -> pd.DataFrame:
    """Accuracy over all classes, fold by fold, with the accuracy of always giving the training samples' most frequent class."""
    rows = []
    for fold, (train, _) in enumerate(splits):
        tested = table[table["fold"] == fold]
        labels, counts = np.unique(y[train], return_counts=True)
        # A class that is predicted but absent from this fold's test samples counts as wrong, which is what is meant.
        with quiet("y_pred contains classes not in y_true", "A single label was found"):
            balanced = balanced_accuracy_score(tested["label"], tested["predicted"])
        rows.append(
            {
                "fold": fold,
                "test_runs": ", ".join(dict.fromkeys(tested["run"].astype(str))),
                "n_train": train.size,
                "n_test": len(tested),
                "accuracy": accuracy_score(tested["label"], tested["predicted"]),
                "balanced_accuracy": balanced,
                "chance": float((tested["label"] == labels[counts.argmax()]).mean()),
            }
        )
    return pd.DataFrame(rows).set_index("fold")


def regression_predictions(
    samples: Samples, splits: Sequence[Split], y: NDArray[np.float64], predicted: NDArray[np.float64]
) -> pd.DataFrame:
    """Out-of-fold predictions of numbers, a row for each test sample of each fold; ``predicted`` is (n_folds, n_samples)."""
    rows = []
    for fold, (_, test) in enumerate(splits):
        run: Any = "" if samples.groups is None else samples.groups[test]
        rows.append(pd.DataFrame({"sample": test, "fold": fold, "run": run, "target": y[test], "predicted": predicted[fold][test]}))
    return pd.concat(rows, ignore_index=True)


def regression_metrics(table: pd.DataFrame, splits: Sequence[Split], y: NDArray[np.float64]) -> pd.DataFrame:
    """Scores of predicted numbers, fold by fold; ``chance`` is the r2 of always giving the training samples' mean.

    NaN where a score is not defined: r2 of a single sample, the correlation of a constant.
    """
    rows = []
    for fold, (train, _) in enumerate(splits):
        tested = table[table["fold"] == fold]
        target, predicted = tested["target"].to_numpy(), tested["predicted"].to_numpy()
        several, vary = target.size > 1, min(target.std(), predicted.std()) > 0
        rows.append(
            {
                "fold": fold,
                "test_runs": ", ".join(dict.fromkeys(tested["run"].astype(str))),
                "n_train": train.size,
                "n_test": len(tested),
                "r2": r2_score(target, predicted) if several else np.nan,
                "mean_absolute_error": mean_absolute_error(target, predicted),
                "correlation": np.corrcoef(target, predicted)[0, 1] if vary else np.nan,
                "chance": r2_score(target, np.full(target.size, y[train].mean())) if several else np.nan,
            }
        )
    return pd.DataFrame(rows).set_index("fold")


def confusion(table: pd.DataFrame, classes: NDArray[Any]) -> pd.DataFrame:
    """Counts of true (rows) and predicted (columns) labels over all folds."""
    counts = confusion_matrix(table["label"], table["predicted"], labels=classes)
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=pd.Index(classes, name="predicted"))


def notes(samples: Samples, splits: Sequence[Split], plan: Plan, quality: Quality, found: CrossValidated) -> list[str]:
    """Say what a reader of the scores should know: bad voxels, fits that did not converge, folds that share runs."""
    n_voxels = samples.x.shape[1]
    said = []
    if quality.n_nonfinite:
        said.append(f"{quality.n_nonfinite} of {n_voxels} voxels have values that are not finite; those values were taken as 0.")
    if quality.n_constant:
        said.append(f"{quality.n_constant} of {n_voxels} voxels are constant over the samples: they carry no information.")
    if found.n_unconverged:
        said.append(unconverged_note(found.n_unconverged, plan.workload.n_fits))
    shared = mixes_groups(splits, samples.groups)
    if shared:
        said.append(
            f"{shared} of {len(splits)} folds have samples of the same run in training and test: noise that lasts over a run makes "
            "their scores optimistic. cv='run' leaves whole runs out."
        )
    undefined = int(np.isnan(found.scores).sum())
    if undefined:
        said.append(f"{undefined} scores are not defined (NaN): a test fold has a single class, or too few samples.")
    return said


def unconverged_note(n: int, n_fits: int) -> str:
    """Say how many fits did not converge, and what helps."""
    return (
        f"{n} of {n_fits} fits stopped at their largest number of iterations. Scale the data, take smaller C, or raise max_iter in "
        "estimator_args."
    )


def scaling_note(standardize: str | None) -> list[str]:
    """Say so where the scaling of training samples looked at test samples."""
    if standardize not in ("zscore_sample", "psc"):
        return []
    said = "scales all samples together, before they are split: the test samples had a part in the scaling of the training samples."
    return [f"standardize={standardize!r} {said}"]


def describe_samples(samples: Samples, quality: Quality, *, classes: bool) -> dict[str, Any]:
    """Say what was decoded: source, runs, counts of labels or the range of values, bad voxels; JSON-able."""
    y = np.asarray(samples.y)
    if classes:
        labels, counts = np.unique(y.astype(str), return_counts=True)
        told: dict[str, Any] = {"labels": dict(zip(labels.tolist(), counts.tolist(), strict=True))}
    else:
        y = y.astype(np.float64)
        told = {"target": {"mean": float(y.mean()), "sd": float(y.std(ddof=1)), "min": float(y.min()), "max": float(y.max())}}
    return {
        **samples.source,
        "n_samples": int(samples.x.shape[0]),
        "n_voxels": int(samples.x.shape[1]),
        "runs": [] if samples.groups is None else list(dict.fromkeys(samples.groups.tolist())),
        **told,
        "n_nonfinite_voxels": quality.n_nonfinite,
        "n_constant_voxels": quality.n_constant,
    }


def plain(value: Any) -> Any:
    """Turn NumPy's scalars and arrays, and containers, into Python's own, and what JSON has no word for into text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def versions() -> dict[str, str]:
    """Versions of the packages whose arithmetic was used."""
    return {"daskdecode": __version__} | {name: version(name) for name in ("numpy", "scipy", "scikit-learn", "dask", "xarray")}
