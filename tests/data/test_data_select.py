from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import daskdecode as dd
from daskdecode.errors import SelectionError, SourceError


def test_keeps_the_volumes_of_the_labels_in_their_order(subject):
    ds = subject()
    got = dd.select_labels(ds, ["cat", "face"])
    rows = np.flatnonzero(np.isin(ds.label.values, ["face", "cat"]))
    assert 0 < len(rows) < ds.sizes["time"]
    np.testing.assert_array_equal(got.bold.values, ds.bold.values[rows])
    np.testing.assert_array_equal(got.run.values, ds.run.values[rows])
    np.testing.assert_array_equal(got.time.values, ds.time.values[rows])


def test_one_label_may_be_a_string(subject):
    assert set(dd.select_labels(subject(), "cat").label.values) == {"cat"}


def test_building_computes_nothing(subject, nothing_computes):
    ds = subject()
    with nothing_computes:
        dd.select_labels(ds, ["face"])


@pytest.mark.parametrize("labels", [[], ()])
def test_no_labels_is_an_error(subject, labels):
    with pytest.raises(SelectionError, match="at least one condition"):
        dd.select_labels(subject(), labels)


def test_unknown_label_names_the_nearest(subject):
    with pytest.raises(SelectionError, match=r"'faces'.*Did you mean 'face'\?.*'cat', 'face', 'rest'"):
        dd.select_labels(subject(), ["cat", "faces"])


def test_data_without_labels_say_so(subject):
    with pytest.raises(SelectionError, match="have no labels"):
        dd.select_labels(subject().drop_vars("label"), ["cat"])


def counts(ds):
    labels, runs = ds.label.values, ds.run.values
    return {(run, label): int(((runs == run) & (labels == label)).sum()) for run in np.unique(runs) for label in np.unique(labels)}


def test_balancing_keeps_the_rarest_labels_number_of_each_in_each_run(subject, nothing_computes):
    ds = dd.select_labels(subject(), ["cat", "face"])
    before = counts(ds)
    with nothing_computes:
        got = dd.balance_labels(ds, random_state=3)
    for (run, label), n in counts(got).items():
        assert n == min(before[run, name] for name in ("cat", "face")), label
    rows = [np.flatnonzero((ds.run.values == r) & (ds.time.values == t))[0] for r, t in zip(got.run.values, got.time.values, strict=True)]
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(got.bold.values, ds.bold.values[rows])
    xr.testing.assert_identical(got, dd.balance_labels(ds, random_state=3))
    assert not got.equals(dd.balance_labels(ds, random_state=4))


def test_a_run_that_lacks_a_label_cannot_be_balanced(subject):
    ds = subject()
    lacking = ds.isel(time=np.flatnonzero((ds.run.values != "01") | (ds.label.values != "cat")))
    with pytest.raises(SelectionError, match="Run 01 has no volume of 'cat'"):
        dd.balance_labels(lacking)


def test_confounds_are_coordinates_that_follow_selections(subject, tmp_path):
    ds = subject()
    table = pd.DataFrame({"trans_x": np.linspace(0, 1, ds.sizes["time"]), "rot z": ["n/a", *np.arange(ds.sizes["time"] - 1)]})
    table.to_csv(tmp_path / "confounds.tsv", sep="\t", index=False)
    for given in (table, tmp_path / "confounds.tsv"):
        got = dd.select_labels(dd.assign_confounds(ds, given), ["cat"])
        rows = np.flatnonzero(ds.label.values == "cat")
        np.testing.assert_allclose(got["trans_x"].values, table["trans_x"].to_numpy()[rows])
        np.testing.assert_array_equal(got["rot z"].values, rows - 1.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"a": [1.0, 2.0]}), "2 rows but the data have 34 volumes"),
        (pd.DataFrame({"label": np.zeros(34)}), "'label' has the name of something"),
        (pd.DataFrame({"a": ["x"] * 34}), "'a' is not numeric"),
    ],
)
def test_confounds_that_do_not_fit_are_named(subject, table, message):
    with pytest.raises(SourceError, match=message):
        dd.assign_confounds(subject(), table)
