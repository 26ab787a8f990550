"""search over pooled subjects: block by block, and with Hyperband."""

from __future__ import annotations

import json
import re

import pytest
from scipy.stats import loguniform
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GroupKFold

import daskdecode as dd
from daskdecode.tuning.pooled import stream

SUBJECTS = ["01", "02", "03", "04"]
LABELS = ["--labels", "face,cat", "--mask", "vt"]
GRID = ["--estimator", "sgd", "--param", "alpha=0.001,0.1", "--route", "stream"]


@pytest.fixture(scope="module")
def pooled_store(tmp_path_factory):
    """Four subjects with two runs each."""
    folder = tmp_path_factory.mktemp("pooled")
    bids = dd.simulate_study(folder / "bids", n_subjects=4, n_runs=2, shape=(7, 9, 8), n_blocks=1, signal=1.0)
    anat = str(bids / "derivatives" / "daskdecode-simulation" / "sub-{subject}" / "anat" / "sub-{subject}_")
    return dd.convert(
        bids, folder / "s.zarr", mask=f"{anat}desc-brain_mask.nii.gz", rois={"vt": f"{anat}label-vt_mask.nii.gz"}, progress=False
    )


def pooled(store, names=SUBJECTS):
    """What the command is to search on, with calls of the library."""
    parts = [dd.apply_mask(dd.select_labels(dd.open_subject(store, s), ["face", "cat"]), "vt") for s in names]
    return dd.pool_subjects(parts)


def test_subjects_are_pooled_and_read_block_by_block(run, pooled_store, tmp_path):
    result = run("search", pooled_store, *LABELS, *GRID, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    decoder = dd.Decoder(SGDClassifier(random_state=0))
    expected = dd.search(decoder, pooled(pooled_store), {"alpha": [0.001, 0.1]}, route="stream", refit=False)
    assert found["cv_results"]["mean_test_score"] == pytest.approx(expected.cv_results_["mean_test_score"].tolist(), abs=1e-12)
    assert found["nested_scores"] == pytest.approx(expected.nested_scores_.tolist(), abs=1e-12)
    assert len(found["nested_scores"]) == 4
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == found


def test_subjects_folds_passes_and_seed_reach_the_search(run, pooled_store):
    names = ["01", "03", "04"]
    told = [*(word for name in names for word in ("--subject", name)), "--cv", "3", "--n-passes", "2", "--seed", "5", "--no-nested"]
    result = run("search", pooled_store, *LABELS, *GRID, *told, "--json")
    assert result.exit_code == 0, result.output
    decoder = dd.Decoder(SGDClassifier(random_state=0), cv=GroupKFold(3))
    how = {"route": "stream", "n_passes": 2, "random_state": 5, "nested": False, "refit": False}
    expected = dd.search(decoder, pooled(pooled_store, names), {"alpha": [0.001, 0.1]}, **how)
    found = json.loads(result.stdout)["cv_results"]
    for fold in range(3):
        assert found[f"split{fold}_test_score"] == pytest.approx(expected.cv_results_[f"split{fold}_test_score"].tolist(), abs=1e-12)


def test_of_one_subject_runs_are_held_out(run, store):
    result = run("search", store, "--subject", "02", *LABELS, *GRID, "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["nested_scores"]) == 3


def test_a_killed_stream_goes_on_where_it_was(run, pooled_store, tmp_path, monkeypatch):
    monkeypatch.setattr("daskdecode.tuning.folds._FITS_OF_A_THREAD", 1)
    out, chains, chain = tmp_path / "out", [], stream.chain

    def counted(lessons, *args):
        chains.extend(lessons.models)
        if len(chains) > 12:
            raise KeyboardInterrupt
        return chain(lessons, *args)

    command = ["search", pooled_store, *LABELS, *GRID, "--json", "--output", out, "--n-workers", "2"]
    whole = run(*[word for word in command if word not in ("--output", out)])
    monkeypatch.setattr(stream, "chain", counted)
    assert run(*command).exit_code != 0
    (kept,) = (out / ".daskdecode").glob("search.*.npz")
    chains.clear()
    n_all = 2 * (4 + 4 * 3 // 2)  # settings, and training sets: without one subject, and without two
    monkeypatch.setattr(stream, "chain", lambda lessons, *args: chains.extend(lessons.models) or chain(lessons, *args))
    resumed = run(*command)
    assert resumed.exit_code == 0, resumed.output
    assert 0 < len(chains) < n_all
    assert json.loads(resumed.stdout)["nested_scores"] == json.loads(whole.stdout)["nested_scores"]
    # Of another question it is of no use.
    assert run(*command, "--seed", "3").exit_code == 0
    assert not kept.exists()


@pytest.mark.slow
def test_hyperband(run, pooled_store, tmp_path):
    told = ["--estimator", "sgd", "--param", "alpha=loguniform(1e-4,1)", "--method", "hyperband", "--n-iter", "3", "--seed", "1"]
    command = ["search", pooled_store, *LABELS, *told, "--scheduler", "local", "--n-workers", "1", "--json", "--output", tmp_path / "out"]
    result = run(*command)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    with dd.connect("local", n_workers=1):
        expected = dd.search(
            dd.Decoder(SGDClassifier(random_state=0)),
            pooled(pooled_store),
            {"alpha": loguniform(1e-4, 1)},
            method="hyperband",
            n_iter=3,
            random_state=1,
        )
    assert found["best_params"] == expected.best_params_
    assert found["cv_results"]["test_score"] == pytest.approx(expected.cv_results_["test_score"].tolist(), abs=1e-12)
    assert found["nested_scores"] == pytest.approx(expected.nested_scores_.tolist(), abs=1e-12)
    # The same command again reads what was kept; another one keeps its own in its place.
    (kept,) = (tmp_path / "out" / ".daskdecode").glob("search.*.models")
    written = {path.name: path.stat().st_mtime_ns for path in kept.glob("model-*.npz")}
    assert len(written) == len(expected.cv_results_["params"])
    assert run(*command).stdout == result.stdout
    assert {path.name: path.stat().st_mtime_ns for path in kept.glob("model-*.npz")} == written
    assert run("search", pooled_store, *LABELS, *GRID, "--output", tmp_path / "out").exit_code == 0
    assert not kept.exists()


HYPERBAND = ["--estimator", "sgd", "--param", "alpha=0.1,1", "--method", "hyperband"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--param", "C=1,10", "--subject", "01", "--subject", "02"], "A grid search is of one subject, and 2 are named.*--route stream"),
        (["--param", "C=1,10", "--route", "stream"], "LinearSVC has no partial_fit.*--estimator sgd.*--estimator logistic"),
        ([*GRID, "--engine", "direct"], "--engine is for searches of one subject"),
        ([*GRID, "--standardize", "zscore_fold"], "--standardize zscore_run, or none"),
        ([*GRID, "--subject", "09"], "no subject '?0?9"),
        ([*GRID, "--mask", "vtt"], "Did you mean 'vt'"),
        ([*GRID, "--subject", "01", "--subject", "02"], "--no-nested"),
        (["--estimator", "sgd", "--param", "alpha=1", "--subject", "01", "--n-passes", "2"], "--n-passes is for .* --route stream"),
        ([*HYPERBAND, "--cv", "3"], "--cv is for grid and random"),
        ([*HYPERBAND, "--error-score", "nan"], "--method hyperband takes no --error-score"),
        (HYPERBAND, "needs a cluster: give --scheduler local"),
    ],
)
def test_what_does_not_fit_together_is_one_line(run, pooled_store, options, message):
    result = run("search", pooled_store, "--labels", "face,cat", *(() if "--mask" in options else ("--mask", "vt")), *options)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert "Client" not in result.stderr
    assert re.search(message, result.stderr), result.stderr
