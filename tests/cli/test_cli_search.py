"""search: numbers against the library, files, refusals."""

from __future__ import annotations

import json

import dask
import numpy as np
import pandas as pd
import pytest
from scipy.stats import loguniform
from sklearn.model_selection import ParameterSampler

import daskdecode as dd
from daskdecode.tuning.table import Fit

ONE = ("--subject", "01", "--labels", "face,cat", "--mask", "vt")


def test_search_gives_the_library_s_numbers_and_files(run, store, tmp_path):
    result = run("search", store, *ONE, "--param", "C=0.001,0.1,10", "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ds = dd.select_labels(dd.open_subject(store, "01"), ["face", "cat"])
    expected = dd.search(dd.Decoder(mask="vt"), ds, {"C": [0.001, 0.1, 10]}, refit=False)
    assert found["nested_scores"] == pytest.approx(expected.nested_scores_.tolist())
    assert found["best_params"] == expected.best_params_
    table = pd.read_csv(tmp_path / "out" / "search.tsv", sep="\t")
    assert table["mean_test_score"][0] == pytest.approx(expected.best_score_)
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == found
    assert (tmp_path / "out" / "search.png").read_bytes().startswith(b"\x89PNG")


def _kept(folder):
    return sorted(path.name for path in (folder / ".daskdecode").iterdir())


def test_a_killed_search_goes_on_where_it_was(run, store, tmp_path, monkeypatch):
    out, fits, fit = tmp_path / "new" / "out", [], Fit.fit
    command = ["search", store, *ONE, "--param", "C=loguniform(0.001,10)", "--method", "random", "--n-iter", "4", "--json", "--output", out]

    def counted(self, *args, **kwargs):
        fits.append(0)
        if len(fits) == 15:
            raise KeyboardInterrupt
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(Fit, "fit", counted)
    n_all = 4 * (3 + 3)
    with dask.config.set(scheduler="synchronous"):
        assert run(*command).exit_code != 0
        assert not (out / "search.json").exists()
        kept = _kept(out)
        assert len(kept) == 1
        resumed = run(*command)
        assert resumed.exit_code == 0, resumed.output
        assert n_all <= len(fits) < n_all + 15
        n_fits = len(fits)
        assert run(*command).stdout == resumed.stdout
        assert len(fits) == n_fits
        assert _kept(out) == kept
        whole = run(*command[:-2])
    assert json.loads(resumed.stdout)["nested_scores"] == json.loads(whole.stdout)["nested_scores"]
    # Of another question nothing is used, and one that is refused leaves no folder.
    assert run(*command, "--no-nested").exit_code == 0
    assert len(_kept(out)) == 1
    assert _kept(out) != kept
    assert run("search", store, *ONE, "--param", "sea=1,2", "--output", tmp_path / "refused" / "out").exit_code == 2
    assert not (tmp_path / "refused").exists()


def test_a_setting_that_fails_ends_it_or_ranks_last(run, store, monkeypatch):
    fit = Fit.fit

    def fails(self, *args, **kwargs):
        if self.params == {"C": 10}:
            raise ValueError("no such C")
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(Fit, "fit", fails)
    command = ["search", store, *ONE, "--param", "C=0.1,10", "--no-nested"]
    with dask.config.set(scheduler="synchronous"):
        ended = run(*command)
        assert ended.exit_code != 0
        assert "no such C" in ended.stderr
        found = run(*command, "--error-score", "nan", "--json")
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout)["best_params"] == {"C": 0.1}


def test_what_is_said_of_the_data_reaches_the_search(run, store, tmp_path):
    n_volumes = dd.open_subject(store, "01").sizes["time"]
    table = pd.DataFrame({"drift": np.linspace(-1, 1, n_volumes) ** 2})
    table.to_csv(tmp_path / "drift.tsv", sep="\t", index=False)
    said = ["--standardize", "zscore_fold", "--confounds", tmp_path / "drift.tsv", "--engine", "dual"]
    result = run("search", store, *ONE, "--param", "C=0.001,0.1", *said, "--json")
    assert result.exit_code == 0, result.output
    ds = dd.select_labels(dd.assign_confounds(dd.open_subject(store, "01"), table), ["face", "cat"])
    decoder = dd.Decoder(mask="vt", standardize="zscore_fold", confounds=["drift"], engine="dual")
    expected = dd.search(decoder, ds, {"C": [0.001, 0.1]}, refit=False)
    plain = dd.search(
        dd.Decoder(mask="vt"), dd.select_labels(dd.open_subject(store, "01"), ["face", "cat"]), {"C": [0.001, 0.1]}, refit=False
    )
    assert json.loads(result.stdout)["nested_scores"] == pytest.approx(expected.nested_scores_.tolist())
    assert expected.cv_results_["mean_test_score"].tolist() != plain.cv_results_["mean_test_score"].tolist()


def test_random_settings_and_a_table_as_text(run, store):
    how = ["--param", "C=loguniform(1e-4,10)", "--method", "random", "--n-iter", "3", "--no-nested"]
    result = run("search", store, *ONE, *how)
    assert result.exit_code == 0, result.output
    assert "3 settings of svc, random search, roc_auc" in result.stdout
    assert "optimistic" in result.stdout
    for seed in (0, 5):
        found = json.loads(run("search", store, *ONE, *how, "--seed", seed, "--json").stdout)
        assert found["cv_results"]["params"] == list(ParameterSampler({"C": loguniform(1e-4, 10)}, 3, random_state=seed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--param", "C"], "expected NAME=VALUES"),
        (["--param", "C=loguniform(0,1)"], "needs two numbers"),
        (["--param", "C=loguniform(0.1,1)"], "'C' is a distribution: use --method random"),
        (["--param", "sea=1,2"], "no parameter 'sea'"),
        (["--param", "C=1", "--param", "C=10"], "'C' is given twice"),
        (["--param", "C=1,10", "--output", __file__], "is a file"),
        (["--param", "C=1,10", "--output", f"{__file__}/out"], "is a file"),
        (["--param", "C=1,10", "--error-score", "nn"], "expected raise, nan or a number"),
        ([], "--param"),
    ],
)
def test_what_cannot_be_searched_is_one_line(run, store, options, message):
    result = run("search", store, *ONE, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
