"""A fitted decoder as the report sees it: the attributes of the contract, filled from a small real cross-validation."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.svm import LinearSVC

AFFINE = np.array([[-3.5, 0, 0, 20.0], [0, 3.75, 0, -30.0], [0, 0, 4.0, -10.0], [0, 0, 0, 1]])


def ellipsoid(shape):
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    return sum(np.square(a) for a in np.meshgrid(*axes, indexing="ij")) <= 1


def cross_validate(X, y, runs, classes):
    """Leave-one-run-out with one problem a class (one in all for two classes)."""
    problems = classes[1:] if len(classes) == 2 else classes
    folds, coefs, rows, metrics = [], [], [], []
    scores = {c: [] for c in classes}
    for fold, run in enumerate(dict.fromkeys(runs)):
        test = runs == run
        folds.append((np.flatnonzero(~test), np.flatnonzero(test)))
        models = [LinearSVC(C=0.01, random_state=0).fit(X[~test], y[~test] == c) for c in problems]
        decision = np.column_stack([m.decision_function(X[test]) for m in models])
        coefs.append(np.concatenate([m.coef_ for m in models]))
        every = np.column_stack([-decision[:, 0], decision[:, 0]]) if len(classes) == 2 else decision
        predicted = np.asarray(classes)[every.argmax(1)]
        for n, c in enumerate(classes):
            scores[c].append(float(roc_auc_score(y[test] == c, every[:, n])))
        frame = pd.DataFrame({"sample": np.flatnonzero(test), "fold": fold, "run": run, "label": y[test], "predicted": predicted})
        rows.append(frame.assign(**{f"decision_{c}": every[:, n] for n, c in enumerate(classes)}))
        accuracy, balanced = float(np.mean(predicted == y[test])), float(balanced_accuracy_score(y[test], predicted))
        metrics.append({"test_runs": run, "n_train": int((~test).sum()), "n_test": int(test.sum()), "accuracy": accuracy,
                        "balanced_accuracy": balanced, "chance": 1 / len(classes)})  # fmt: skip
    return folds, np.array(coefs), scores, pd.concat(rows, ignore_index=True), pd.DataFrame(metrics).rename_axis("fold")


@pytest.fixture
def make_decoder():
    def make(
        classes=("cat", "face"), *, shape=(7, 8, 9), grid=True, zero=False, optimistic=False, n_runs=6, scoring="roc_auc", **provenance
    ):
        rng = np.random.default_rng(0)
        inside = ellipsoid(shape)
        patterns = rng.normal(size=(len(classes), inside.sum())) * (np.argwhere(inside)[:, 1] < shape[1] // 3)
        codes = np.tile(np.repeat(np.arange(len(classes)), 4), n_runs)
        runs = np.repeat([f"{n + 1:02}" for n in range(n_runs)], 4 * len(classes))
        X = rng.normal(size=(len(codes), inside.sum())) * 8 + patterns[codes]
        folds, coefs, scores, predictions, metrics = cross_validate(X, np.asarray(classes)[codes], runs, list(classes))
        coef = coefs.mean(0) * (0 if zero else 1)
        pattern = np.cov(X.T) @ coef.T
        provenance = {
            "estimator": "svc", "tune": "held_out" if optimistic else "nested", "standardize": "zscore_run", "cv": "LeaveOneGroupOut()",
            "grid": {"C": [1, 10, 100]}, "n_samples": len(X), "n_voxels": int(inside.sum()), "runs": list(dict.fromkeys(runs)),
            "label_counts": {c: int((codes == n).sum()) for n, c in enumerate(classes)}, "source": "study.zarr", "subject": "1",
            "versions": {"daskdecode": "0.1", "numpy": np.__version__}, "warnings": [],
        } | provenance  # fmt: skip
        decoder = SimpleNamespace(
            classes_=np.asarray(classes), coef_=coef, intercept_=np.zeros(len(coef)), std_coef_=coefs.std(0), pattern_=pattern.T, cv_=folds,
            cv_scores_=scores, cv_params_={c: {"C": [1.0] * n_runs} for c in classes}, cv_predictions_=predictions, cv_metrics_=metrics,
            confusion_=pd.crosstab(predictions["label"], predictions["predicted"]).reindex(index=classes, columns=classes, fill_value=0),
            optimistic_=optimistic, scoring_=scoring, provenance_=provenance, plan_="plan", screening_percentile_=20,
            n_elements_=int(inside.sum()),
        )  # fmt: skip
        if grid:
            for name, values in (("coef", coef), ("std_coef", coefs.std(0)), ("pattern", pattern.T)):
                signed = {classes[0]: -values[0], classes[1]: values[0]} if len(classes) == 2 else dict(zip(classes, values, strict=True))
                setattr(decoder, f"{name}_img_", {c: to_image(np.abs(v) if name == "std_coef" else v, inside) for c, v in signed.items()})
            decoder.background = to_image(1000 + 200 * rng.random(inside.sum()), inside)
        return decoder

    return make


def to_image(values, inside):
    volume = np.zeros(inside.shape, dtype=np.float32)
    volume[inside] = values
    return nib.Nifti1Image(volume, AFFINE)
