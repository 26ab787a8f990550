"""From NIfTI through a store to nilearn's numbers, on real data; and the same numbers on threads, processes and a cluster."""

from __future__ import annotations

import warnings

import dask
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.decoding import Decoder as NilearnDecoder
from nilearn.image import index_img
from sklearn.model_selection import LeaveOneGroupOut

import daskdecode as dd


@pytest.fixture(scope="module")
def haxby_store(shared_data, tmp_path_factory):
    folder = shared_data / "haxby-slice"
    store = tmp_path_factory.mktemp("haxby") / "study.zarr"
    return dd.convert(folder / "bold.nii.gz", store, labels=folder / "labels.txt", mask=folder / "mask.nii.gz", progress=False)


@pytest.mark.parametrize("conditions", [("face", "cat"), ("face", "cat", "house")])
def test_a_store_gives_the_numbers_that_nilearn_gives_on_the_image(shared_data, haxby_store, conditions):
    folder = shared_data / "haxby-slice"
    table = pd.read_csv(folder / "labels.txt", sep=" ")
    keep = table.labels.isin(conditions).to_numpy()
    img, mask = index_img(nib.load(folder / "bold.nii.gz"), keep), nib.load(folder / "mask.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = NilearnDecoder("svc", mask=mask, standardize="zscore_sample", cv=LeaveOneGroupOut())
        theirs.fit(img, table.labels[keep], groups=table.chunks[keep])
    ds = dd.select_labels(dd.open_subject(haxby_store), list(conditions))
    ours = dd.Decoder(tune="held_out", standardize="zscore_sample").fit(ds)
    assert ours.cv_scores_ == theirs.cv_scores_
    assert ours.cv_params_ == theirs.cv_params_
    order = np.argsort(ds.voxel.values)
    np.testing.assert_allclose(ours.coef_[:, order], theirs.coef_, atol=1e-5 * np.abs(theirs.coef_).max(), rtol=0)
    np.testing.assert_array_equal(ours.predict(ds), theirs.predict(img))
    sign = -1 if len(conditions) == 2 else 1  # nilearn's binary maps have the sign of the other class
    for name in conditions:
        values = sign * np.asarray(theirs.coef_img_[name].dataobj)
        np.testing.assert_allclose(ours.coef_img_[name].get_fdata(), values, atol=1e-5 * np.abs(values).max(), rtol=0)


def _fit(store):
    ds = dd.select_labels(dd.open_subject(store), ["face", "cat"])
    return dd.Decoder(screening_percentile=None, screening_n_features=300).fit(ds)


def _assert_same(a, b):
    assert a.cv_params_ == b.cv_params_
    np.testing.assert_allclose(a.coef_, b.coef_, atol=1e-10 * np.abs(b.coef_).max(), rtol=0)
    np.testing.assert_allclose(list(a.cv_scores_.values()), list(b.cv_scores_.values()), atol=1e-12)


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_scheduler(haxby_store):
    from distributed import Client, LocalCluster

    with dask.config.set(scheduler="synchronous"):
        reference = _fit(haxby_store)
    with dask.config.set(scheduler="threads", num_workers=4):
        _assert_same(_fit(haxby_store), reference)
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster):
        _assert_same(_fit(haxby_store), reference)
