from __future__ import annotations

import numpy as np
import pytest

import daskdecode as dd
from daskdecode.errors import SelectionError


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
