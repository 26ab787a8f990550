"""The tutorial on real data, beside nilearn's Decoder asked the same questions here and now."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shutil
import warnings
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.decoding import Decoder as NilearnDecoder
from nilearn.image import index_img, mean_img
from sklearn.model_selection import KFold, LeaveOneGroupOut

import daskdecode as dd

mpl.use("Agg")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")]

SCRIPT = Path(__file__).parents[2] / "examples" / "haxby_decoding.py"


@pytest.fixture(scope="module")
def tutorial() -> ModuleType:
    spec = importlib.util.spec_from_file_location("haxby_decoding", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def haxby_folder(shared_data, tmp_path_factory) -> Path:
    """The slice, laid out as nilearn lays out a subject of haxby2001."""
    folder = tmp_path_factory.mktemp("haxby2001")
    subject = folder / "subj2"
    subject.mkdir()
    source = shared_data / "haxby-slice"
    shutil.copyfile(source / "bold.nii.gz", subject / "bold.nii.gz")
    shutil.copyfile(source / "labels.txt", subject / "labels.txt")
    shutil.copyfile(source / "mask.nii.gz", subject / "mask4_vt.nii.gz")
    mean_img(str(source / "bold.nii.gz"), copy_header=True).to_filename(subject / "anat.nii.gz")
    return folder


@pytest.fixture(scope="module")
def run(tutorial, haxby_folder, tmp_path_factory):
    """The tutorial run once from the command line's side: what it printed, and the folder it wrote."""
    output = tmp_path_factory.mktemp("output")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        tutorial.main(["--data-dir", str(haxby_folder), "--output", str(output), "--shuffles", "0"])
    return printed.getvalue(), output


@pytest.fixture(scope="module")
def samples(tutorial, run):
    return tutorial.faces_and_cats(dd.open_subject(run[1] / "haxby.zarr"))


@pytest.fixture(scope="module")
def by_nilearn(haxby_folder):
    """Images, labels and runs of the same samples, and a maker of nilearn's decoder."""
    subject = haxby_folder / "subj2"
    table = pd.read_csv(subject / "labels.txt", sep=" ")
    keep = table["labels"].isin(["face", "cat"])
    images = index_img(str(subject / "bold.nii.gz"), keep)
    mask = str(subject / "mask4_vt.nii.gz")

    def fit(images, labels, groups=None, **options):
        return NilearnDecoder("svc", mask=mask, standardize="zscore_sample", verbose=0, **options).fit(images, labels, groups=groups)

    return images, table["labels"][keep].to_numpy().astype(str), table["chunks"][keep].to_numpy(), fit


def nilearn_accuracy(by_nilearn, train, test) -> float:
    images, labels, _, fit = by_nilearn
    decoder = fit(index_img(images, train), labels[train])
    return float(np.mean(decoder.predict(index_img(images, test)) == labels[test]))


def test_fitting_on_everything_gives_one(run, by_nilearn):
    everything = np.arange(216)
    assert nilearn_accuracy(by_nilearn, everything, everything) == 1.0
    assert "accuracy: 1.000\n" in run[0]


def test_the_last_thirty(tutorial, samples, by_nilearn, run):
    expected = nilearn_accuracy(by_nilearn, np.arange(186), np.arange(186, 216))
    assert tutorial.accuracy_on_last(samples, 30) == expected
    assert f"5. Leave the last 30 volumes out\n   accuracy: {expected:.3f}\n" in run[0]


def test_the_kfold_loop(by_nilearn, run):
    expected = [nilearn_accuracy(by_nilearn, train, test) for train, test in KFold(5).split(by_nilearn[1])]
    assert re.findall(r"fold (\d) \| accuracy: (\S+)", run[0]) == [(str(n), f"{a:.3f}") for n, a in enumerate(expected, start=1)]


def test_the_decoders_own_five_folds(tutorial, samples, by_nilearn):
    images, labels, _, fit = by_nilearn
    expected = fit(images, labels, cv=5, scoring="accuracy")
    got = tutorial.five_folds(samples)
    assert got.cv_scores_ == expected.cv_scores_
    assert got.cv_params_ == expected.cv_params_


def test_leave_one_run_out_scores_and_weights(tutorial, samples, by_nilearn, run):
    images, labels, groups, fit = by_nilearn
    expected = fit(images, labels, groups, cv=LeaveOneGroupOut())
    got = tutorial.leave_one_run_out(samples)
    assert got.cv_scores_ == expected.cv_scores_
    assert got.cv_params_ == expected.cv_params_
    assert got.optimistic_
    in_c_order = got.coef_[:, np.argsort(samples.voxel.values)]
    scale = np.abs(expected.coef_).max()
    np.testing.assert_allclose(in_c_order, expected.coef_, rtol=0, atol=1e-5 * scale)
    saved = nib.load(run[1] / "haxby_svc_weights.nii.gz")
    # nilearn gives the image of "face" the sign of "cat"
    np.testing.assert_allclose(saved.get_fdata(), -expected.coef_img_["face"].get_fdata(), rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(saved.affine, images.affine)


def test_positive_weights_speak_for_faces(samples, run):
    weights = nib.load(run[1] / "haxby_svc_weights.nii.gz").get_fdata()[samples.i.values, samples.j.values, samples.k.values]
    evidence = dd.standardize(samples, "zscore_sample").bold.values @ weights
    assert evidence[samples.label.values == "face"].mean() > evidence[samples.label.values == "cat"].mean()


def test_what_it_writes(run):
    for name in ("haxby_svc_weights.nii.gz", "haxby_svc_weights.html", "mean.html", "mask_vt.png", "report.html"):
        assert (run[1] / name).stat().st_size > 0, name
    assert "SVM weights" in (run[1] / "haxby_svc_weights.html").read_text()


def test_the_second_run_converts_nothing(run, tutorial, haxby_folder):
    store = run[1] / "haxby.zarr"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    tutorial.convert_once(tutorial.get_data(haxby_folder, 2), store)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before


def test_shuffled_labels_show_which_score_is_optimistic(tutorial, samples):
    with warnings.catch_warnings(action="ignore"):
        held_out, nested = tutorial.scores_on_shuffled_labels(samples, 2)
    assert np.mean(held_out) > np.mean(nested)
    assert abs(np.mean(nested) - 0.5) < 0.12  # one label set scatters by about 0.05
