"""An introduction to decoding with daskdecode: faces against cats in the ventral stream
======================================================================================

The walk of nilearn's introductory tutorial, step by step and with the same numbers, on the study of Haxby et al. (2001,
*Science* 293:2425-2430). It is didactic, not minimal: the whole of a real analysis is three lines (see the README).

    python examples/haxby_decoding.py                            # downloads 310 MB once, into nilearn's data folder
    python examples/haxby_decoding.py --data-dir my/subj2        # a folder with bold.nii.gz, labels.txt, mask4_vt.nii.gz [, anat.nii.gz]

Everything is written to ``--output``: the store, pictures, the weights as NIfTI and as an interactive page, and the report.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # pictures go to files: no screen is needed

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr
from nilearn import plotting
from sklearn.model_selection import KFold, LeaveOneGroupOut
from sklearn.utils import Bunch

import daskdecode as dd
from daskdecode.errors import DaskDecodeError

# What nilearn's Decoder(estimator="svc", standardize="zscore_sample") computes: ten stratified folds; hyperparameters chosen on the very
# folds whose scores are reported; all samples z-scored together. We ask for it by name: it is not what daskdecode does by itself.
AS_NILEARN = {"estimator": "svc", "tune": "held_out", "standardize": "zscore_sample", "cv": 10}


def main(arguments: Sequence[str] | None = None) -> None:
    """Walk through every step."""
    options = parse(arguments)
    output = options.output
    output.mkdir(parents=True, exist_ok=True)

    print("1. The data")
    haxby = get_data(options.data_dir, options.subject)
    print(f"   functional image (4-D): {haxby.func[0]}")
    print(pd.read_csv(haxby.session_target[0], sep=r"\s+"))

    print("\n2. Convert once")
    store = convert_once(haxby, output / "haxby.zarr")
    ds = dd.open_subject(store)
    print(ds)
    draw(haxby, ds, output)

    print("\n3. Keep faces and cats, in ventral temporal cortex")
    samples = faces_and_cats(ds)
    print(f"   {samples.sizes['time']} volumes x {samples.sizes['voxel']} voxels: {samples.bold.nbytes / 1e6:.1f} MB, none of it read yet")

    print("\n4. Fit on everything, predict the same: meaningless")
    print(f"   accuracy: {accuracy_on_training_data(samples):.3f}")
    print("   A linear model with more voxels than volumes can learn any labels by heart, even wrong ones. It says nothing about new data.")

    print("\n5. Leave the last 30 volumes out")
    print(f"   accuracy: {accuracy_on_last(samples, 30):.3f}")

    print("\n6. A KFold loop")
    for fold, accuracy in enumerate(kfold_accuracies(samples), start=1):
        print(f"   fold {fold} | accuracy: {accuracy:.3f}")

    print("\n7. The decoder's own cross-validation")
    five = five_folds(samples)
    print(f"   accuracy of each fold: {rounded(five.cv_scores_['face'])}")
    print(f"   chosen for each fold: {five.cv_params_['face']}")

    print("\n8. Leave one run out: noise is correlated within a run, so a test run must be a run apart")
    by_run = leave_one_run_out(samples)
    print(f"   ROC AUC of each run: {rounded(by_run.cv_scores_['face'])}")
    print(f"   mean: {np.mean(by_run.cv_scores_['face']):.4f}")

    print("\n9. The weights")
    show_weights(by_run, haxby, ds, output)

    print("\n10. The honest score")
    compare_honestly(samples, by_run, output, options.shuffles)
    print(f"\nEverything is in {output}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="nilearn's introductory decoding tutorial, with daskdecode.")
    parser.add_argument("--data-dir", type=Path, help="folder laid out as nilearn's haxby2001; default: download into nilearn's own folder")
    parser.add_argument("--subject", type=int, default=2, help="subject of the Haxby study, 1 to 6 (default: 2)")
    parser.add_argument("--output", type=Path, default=Path("haxby_decoding"), help="folder for the results (default: ./haxby_decoding)")
    parser.add_argument("--shuffles", type=int, default=3, help="shuffled label sets of the last step (default: 3; 0 leaves it out)")
    return parser.parse_args(arguments)


def get_data(data_dir: Path | None, subject: int) -> Bunch:
    """Files of one subject: a local folder where there is one, else nilearn's fetcher. The fields are nilearn's."""
    for folder in (data_dir, *(data_dir / name for name in (f"subj{subject}", f"haxby2001/subj{subject}"))) if data_dir else ():
        if (folder / "bold.nii.gz").exists():
            anat = folder / "anat.nii.gz"
            return Bunch(
                func=[folder / "bold.nii.gz"],
                session_target=[folder / "labels.txt"],
                mask_vt=[folder / "mask4_vt.nii.gz"],
                anat=[anat if anat.exists() else None],
            )
    return dd.fetch_haxby(subject=subject, data_dir=data_dir)


def convert_once(haxby: Bunch, store: Path) -> Path:
    """From NIfTI to a store; a finished one is taken as it is.

    All voxels are kept, because an automatic brain mask may cut into ventral temporal cortex, where the signal is weak: numbers would
    then differ from nilearn's. ``labels.txt`` has a column of runs (called ``chunks`` there), so the one image becomes twelve runs.
    """
    dd.convert(haxby.func[0], store, labels=haxby.session_target[0], mask="none", rois={"vt": haxby.mask_vt[0]})
    return store


def draw(haxby: Bunch, ds: xr.Dataset, output: Path) -> None:
    """The mean image as an interactive page, and the mask on the anatomy as a picture."""
    mean = dd.mean_image(ds)
    with quiet():
        plotting.view_img(mean, threshold=None, title="Mean image").save_as_html(output / "mean.html")
        plotting.plot_roi(haxby.mask_vt[0], bg_img=background(haxby, mean), cmap="Paired", output_file=output / "mask_vt.png")


def faces_and_cats(ds: xr.Dataset) -> xr.Dataset:
    """The samples of the whole tutorial. Two lazy selections: nothing is read, and later only what they name is."""
    return dd.apply_mask(dd.select_labels(ds, ["face", "cat"]), "vt")


def accuracy_on_training_data(samples: xr.Dataset) -> float:
    """Train on all samples and test on the same."""
    return accuracy_between(samples, samples)


def accuracy_on_last(samples: xr.Dataset, n: int) -> float:
    """Train on all but the last ``n`` volumes, test on those."""
    return accuracy_between(samples.isel(time=slice(None, -n)), samples.isel(time=slice(-n, None)))


def kfold_accuracies(samples: xr.Dataset) -> list[float]:
    """Accuracy of each of five folds of consecutive volumes. Labels and runs travel with the samples: selecting is one ``isel``."""
    folds = KFold(n_splits=5).split(samples.label)
    return [accuracy_between(samples.isel(time=train), samples.isel(time=test)) for train, test in folds]


def accuracy_between(train: xr.Dataset, test: xr.Dataset) -> float:
    """Train on some samples, test on others; the test samples are z-scored on themselves, as nilearn does."""
    with quiet():
        decoder = dd.Decoder(**AS_NILEARN).fit(train)
    return float(np.mean(decoder.predict(test) == test.label.values))


def five_folds(samples: xr.Dataset) -> dd.Decoder:
    """Five stratified folds, scored by accuracy."""
    with quiet():
        return dd.Decoder(**AS_NILEARN | {"cv": 5, "scoring": "accuracy"}).fit(samples)


def leave_one_run_out(samples: xr.Dataset) -> dd.Decoder:
    """``groups`` need not be given: the samples know their runs. ``cv="run"`` is the same, and daskdecode's default."""
    return dd.Decoder(**AS_NILEARN | {"cv": LeaveOneGroupOut()}).fit(samples)


def show_weights(decoder: dd.Decoder, haxby: Bunch, ds: xr.Dataset, output: Path) -> None:
    """Weights as numbers, as an image and over the anatomy."""
    with np.printoptions(threshold=20):
        print(decoder.coef_)
    print(f"   one weight a voxel: {decoder.coef_.shape}")
    # Positive where the pattern speaks for a face. (nilearn's image of this name has the opposite sign: see docs/coming-from-nilearn.md.)
    weights = decoder.coef_img_["face"]
    weights.to_filename(output / "haxby_svc_weights.nii.gz")
    with quiet():
        view = plotting.view_img(weights, bg_img=background(haxby, dd.mean_image(ds)), title="SVM weights", dim=-1)
        view.save_as_html(output / "haxby_svc_weights.html")


def compare_honestly(samples: xr.Dataset, as_nilearn: dd.Decoder, output: Path, n_shuffles: int) -> None:
    """The same question with daskdecode's defaults, and what both ways say where there is nothing to find."""
    nested = dd.Decoder("svc", standardize="zscore_sample").fit(samples)
    honest = dd.Decoder("svc").fit(samples)  # leave one run out, C chosen inside the training runs, z-scores within each run
    for how, decoder in {
        "C chosen on the reported folds, all samples z-scored together": as_nilearn,
        "C chosen inside the training runs, all samples z-scored together": nested,
        "C chosen inside the training runs, each run z-scored by itself (the default)": honest,
    }.items():
        print(f"   ROC AUC {np.mean(decoder.cv_scores_['face']):.4f}   optimistic: {decoder.optimistic_!s:5}   {how}")
    print(honest.cv_metrics_.to_string())
    dd.write_report(honest, output / "report.html", background=dd.mean_image(samples))
    if n_shuffles:
        held_out, nested = scores_on_shuffled_labels(samples, n_shuffles)
        error = 0.05 / n_shuffles**0.5
        print(f"   labels shuffled within runs {n_shuffles} times, a wide grid of C: nothing to find, so 0.5, give or take {error:.2f}")
        print(f"   chosen on the reported folds: {np.mean(held_out):.3f}   chosen inside the training runs: {np.mean(nested):.3f}")


def scores_on_shuffled_labels(samples: xr.Dataset, n_shuffles: int, seed: int = 0) -> tuple[list[float], list[float]]:
    """Mean ROC AUC over runs on labels that mean nothing, tuned on the held-out folds and inside the training runs.

    Labels are shuffled within runs, so that every run keeps its share of each. The best of six values of C on a held-out fold is above
    chance for want of anything better to choose; a C that was chosen elsewhere cannot be.
    """
    rng = np.random.default_rng(seed)
    grid = {"C": np.geomspace(1e-6, 1e-1, 6)}
    held_out, nested = [], []
    for _ in range(n_shuffles):
        labels = samples.label.values.copy()
        for run in np.unique(samples.run):
            rows = np.flatnonzero(samples.run.values == run)
            labels[rows] = rng.permutation(labels[rows])
        with quiet():
            for tune, scores in (("held_out", held_out), ("nested", nested)):
                decoder = dd.Decoder("svc", tune=tune, param_grid=grid).fit(samples, labels)
                scores.append(float(np.mean(decoder.cv_scores_["face"])))
    return held_out, nested


def background(haxby: Bunch, mean: nib.Nifti1Image) -> nib.Nifti1Image | str | Path:
    """The anatomy where the subject has one (subject 6 has none)."""
    return haxby.anat[0] if haxby.anat[0] is not None else mean


def rounded(scores: Sequence[float]) -> list[float]:
    """Three digits are enough to look at."""
    return [round(score, 3) for score in scores]


def quiet() -> warnings.catch_warnings:
    """Leave out what the text says anyway (folds that share a run, fits that do not converge) and remarks of plotting libraries."""
    return warnings.catch_warnings(action="ignore")


if __name__ == "__main__":
    try:
        main()
    except DaskDecodeError as error:
        sys.exit(f"{error}")
