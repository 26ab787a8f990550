"""The simulated study: valid BIDS, reproducible, with the signal where it was planted and nowhere else."""

from __future__ import annotations

from pathlib import Path

import dask
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from bids_validator import BIDSValidator
from nilearn.decoding import Decoder
from nilearn.masking import apply_mask, compute_epi_mask
from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
from sklearn.svm import LinearSVC

import daskdecode as dd
from daskdecode.errors import SourceError
from daskdecode.sources import simulate
from daskdecode.sources.events import events_to_labels

SHAPE = (7, 8, 9)
SMALL = {"shape": SHAPE, "n_runs": 2, "n_blocks": 1}
TRUTH = "derivatives/daskdecode-simulation"


def images(root: Path) -> list[Path]:
    return sorted(root.glob("sub-*/**/*_bold.nii.gz"))


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def truth(root: Path, name: str) -> nib.Nifti1Image:
    return nib.load(root / TRUTH / "sub-01" / "anat" / f"sub-01_{name}_mask.nii.gz")


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def labelled(image: Path) -> np.ndarray:
    """A label a volume, as a conversion would give."""
    events = str(image).replace("_bold.nii.gz", "_events.tsv")
    return events_to_labels(events, nib.load(image).shape[3], float(nib.load(image).header.get_zooms()[3]))


@pytest.fixture(scope="module")
def default_study(tmp_path_factory) -> Path:
    return dd.simulate_study(tmp_path_factory.mktemp("default") / "study")


def samples(root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices into the concatenated runs, labels and runs of the volumes that show a condition."""
    labels = [labelled(path) for path in images(root)]
    y, runs = np.concatenate(labels), np.repeat(np.arange(len(labels)), [len(x) for x in labels])
    kept = np.flatnonzero(y != "rest")
    return kept, y[kept], runs[kept]


def roc_auc_of_runs(root: Path, mask: nib.Nifti1Image) -> np.ndarray:
    kept, y, runs = samples(root)
    signals = [apply_mask(path, mask) for path in images(root)]
    X = np.concatenate([(x - x.mean(axis=0)) / x.std(axis=0, ddof=1) for x in signals])[kept]
    svc = LinearSVC(dual=True, max_iter=10_000, random_state=0)
    return cross_val_score(svc, X, y, groups=runs, cv=LeaveOneGroupOut(), scoring="roc_auc")


def test_nilearn_decodes_the_planted_region_well_but_not_perfectly(default_study):
    kept, y, runs = samples(default_study)
    runs_4d = np.concatenate([values(path) for path in images(default_study)], axis=-1)
    region = truth(default_study, "label-vt")
    image = nib.Nifti1Image(runs_4d[..., kept], region.affine)
    decoder = Decoder("svc", mask=region, cv=LeaveOneGroupOut(), scoring="roc_auc", standardize="zscore_sample", screening_percentile=100)
    decoder.fit(image, y, groups=runs)
    assert 0.8 < np.mean(decoder.cv_scores_["face"]) < 0.97


def test_the_region_decodes_and_the_rest_of_the_brain_is_at_chance(default_study):
    brain, region = truth(default_study, "desc-brain"), truth(default_study, "label-vt")
    elsewhere = nib.Nifti1Image((values_of(brain) & ~values_of(region)).astype(np.uint8), brain.affine)
    assert 0.8 < roc_auc_of_runs(default_study, region).mean() < 0.97
    assert 0.35 < roc_auc_of_runs(default_study, elsewhere).mean() < 0.65


def values_of(mask: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(mask.dataobj) != 0


@pytest.mark.slow
def test_scores_of_the_region_over_seeds_and_of_null_studies(tmp_path):
    planted, null = [], []
    for seed in range(6):
        for signal, scores in [(None, planted), (0.0, null)]:
            options = {} if signal is None else {"signal": signal}
            study = dd.simulate_study(tmp_path / f"{seed}-{signal}", seed=seed, **options)
            scores.append(roc_auc_of_runs(study, truth(study, "label-vt")).mean())
    assert 0.8 < np.mean(planted) < 0.97
    assert all(0.75 < score < 0.995 for score in planted)
    assert abs(np.mean(null) - 0.5) < 0.06


def test_all_names_are_valid_bids(tmp_path):
    validator = BIDSValidator()
    study = dd.simulate_study(tmp_path / "study", n_subjects=2, n_sessions=2, **SMALL)
    names = list(contents(study))
    assert len(images(study)) == 8
    assert [name for name in names if not validator.is_bids(f"/{name}")] == []


def test_files_say_what_they_are(tmp_path):
    study = dd.simulate_study(tmp_path / "study", repetition_time=1.5, **SMALL)
    image = nib.load(study / "sub-01" / "func" / "sub-01_task-objectviewing_run-01_bold.nii.gz")
    assert image.shape[:3] == SHAPE
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms()[3] == 1.5
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert len(set(np.round(image.header.get_zooms()[:3], 3))) == 3, "voxel sizes should differ, so that a swapped axis shows"
    events = pd.read_csv(study / "sub-01" / "func" / "sub-01_task-objectviewing_run-01_events.tsv", sep="\t")
    assert list(events.columns) == ["onset", "duration", "trial_type"]
    assert sorted(events.trial_type) == ["cat", "face"]
    assert events.onset.max() + events.duration.max() < image.shape[3] * 1.5
    for mask in ["desc-brain", "label-vt"]:
        np.testing.assert_array_equal(truth(study, mask).affine, image.affine)
    pattern = nib.load(
        study / TRUTH / "sub-01" / "func" / "sub-01_task-objectviewing_contrast-cat_stat-effect_statmap.nii.gz",
    )
    assert pattern.get_data_dtype() == np.float32


def test_sessions_make_a_level(tmp_path):
    study = dd.simulate_study(tmp_path / "study", n_sessions=2, **SMALL)
    assert (study / "sub-01" / "ses-02" / "func" / "sub-01_ses-02_task-objectviewing_run-02_events.tsv").exists()


@pytest.mark.parametrize("shape", [(20, 24, 18), (7, 8, 9), (13, 9, 11)])
def test_nilearn_finds_the_brain(tmp_path, shape):
    study = dd.simulate_study(tmp_path / "study", shape=shape, n_runs=1, n_blocks=1)
    found = values_of(compute_epi_mask(images(study)[0], opening=False))
    brain = values_of(truth(study, "desc-brain"))
    assert 2 * (found & brain).sum() / (found.sum() + brain.sum()) > 0.95
    assert not (values_of(truth(study, "label-vt")) & ~brain).any()


def test_the_same_seed_gives_the_same_bytes_on_any_scheduler(tmp_path):
    with dask.config.set(scheduler="synchronous"):
        first = contents(dd.simulate_study(tmp_path / "first", seed=3, **SMALL))
    with dask.config.set(scheduler="threads"):
        second = contents(dd.simulate_study(tmp_path / "second", seed=3, **SMALL))
    other = contents(dd.simulate_study(tmp_path / "other", seed=4, **SMALL))
    assert first == second
    assert all(first[name] != other[name] for name in first if name.endswith("_bold.nii.gz"))


def test_a_subject_does_not_depend_on_how_many_there_are(tmp_path):
    one = contents(dd.simulate_study(tmp_path / "one", **SMALL))
    two = contents(dd.simulate_study(tmp_path / "two", n_subjects=2, **(SMALL | {"n_runs": 3})))
    shared = [name for name in one if name.endswith((".nii.gz", "_events.tsv"))]
    assert all(one[name] == two[name] for name in shared)


def test_subjects_and_runs_have_their_own_noise(tmp_path):
    study = dd.simulate_study(tmp_path / "study", n_subjects=2, **SMALL)
    air = ~values_of(truth(study, "desc-brain"))
    noise = np.corrcoef([values(path)[air].ravel() for path in images(study)])
    assert np.abs(noise[np.triu_indices(4, 1)]).max() < 0.05


def test_the_signal_is_the_planted_pattern_times_the_response_and_only_in_the_region(tmp_path):
    quiet = {"noise": 0.0, "drift": 0.0}
    planted = dd.simulate_study(tmp_path / "planted", signal=20.0, **quiet, **SMALL)
    null = dd.simulate_study(tmp_path / "null", signal=0.0, **quiet, **SMALL)
    region = values_of(truth(planted, "label-vt"))
    for path in images(planted):
        difference = values(path).astype(float) - values(null / path.relative_to(planted))
        assert not difference[~region].any()
        labels = labelled(path)
        for condition in ("face", "cat"):
            name = f"sub-01_task-objectviewing_contrast-{condition}_stat-effect_statmap.nii.gz"
            effect = values(planted / TRUTH / "sub-01" / "func" / name)
            assert not effect[~region].any()
            assert effect[region].std() == pytest.approx(20.0, rel=1e-3)
            response = difference[region][:, labels == condition].mean(axis=1)
            assert np.corrcoef(response, effect[region])[0, 1] > 0.99


def test_null_study_has_the_same_noise_but_no_effect(tmp_path):
    study = dd.simulate_study(tmp_path / "null", signal=0, **SMALL)
    maps = list((study / TRUTH / "sub-01" / "func").glob("*_statmap.nii.gz"))
    assert len(maps) == 2
    assert not any(values(path).any() for path in maps)


def test_noise_has_the_asked_strength_and_correlations(tmp_path):
    def percent(name, **options):
        study = dd.simulate_study(tmp_path / name, signal=0, drift=0, noise=5, n_runs=1, n_blocks=8, **options)
        brain = values_of(truth(study, "desc-brain"))
        x = values(images(study)[0]).astype(float)
        along_x = brain & np.roll(brain, 1, axis=0)
        series = x[brain] / x[brain].mean(axis=1, keepdims=True) * 100 - 100
        neighbours = np.mean([np.corrcoef(x[i, j, k], x[i - 1, j, k])[0, 1] for i, j, k in np.argwhere(along_x)[::20]])
        return series, neighbours

    smooth, correlation = percent("smooth", ar1=0.6, smoothness_mm=20)
    assert smooth.std() == pytest.approx(5, rel=0.05)
    assert np.mean(smooth[:, 1:] * smooth[:, :-1]) / smooth.var() == pytest.approx(0.6, abs=0.06)
    assert correlation > 0.5
    rough, correlation = percent("rough", ar1=0.0, smoothness_mm=0)
    assert np.mean(rough[:, 1:] * rough[:, :-1]) / rough.var() == pytest.approx(0.0, abs=0.05)
    assert abs(correlation) < 0.05


def test_drift_is_slow(tmp_path):
    study = dd.simulate_study(tmp_path / "study", signal=0, noise=0, drift=5, **SMALL)
    brain = values_of(truth(study, "desc-brain"))
    x = values(images(study)[0])[brain].astype(float)
    trend = np.vander(np.linspace(-1, 1, x.shape[1]), 3)
    residual = x.T - trend @ np.linalg.lstsq(trend, x.T, rcond=None)[0]
    assert residual.var() < 0.1 * (x - x.mean(axis=1, keepdims=True)).var()


@pytest.mark.parametrize("similarity", [0.0, 0.5, 1.0])
def test_patterns_of_subjects_are_as_similar_as_asked(tmp_path, similarity):
    conditions = list("abcdefgh")
    options = {"n_runs": 1, "n_blocks": 1, "shape": (20, 24, 18), "block_s": 2.0, "rest_s": 0.0, "smoothness_mm": 4.0}
    study = dd.simulate_study(tmp_path / "study", n_subjects=3, conditions=conditions, similarity=similarity, **options)
    region = values_of(truth(study, "label-vt"))
    correlations = []
    for condition in conditions:
        maps = sorted(study.glob(f"{TRUTH}/sub-*/func/*_contrast-{condition}_*.nii.gz"))
        c = np.corrcoef([values(path)[region] for path in maps])
        correlations.extend(c[np.triu_indices(3, 1)])
    assert np.mean(correlations) == pytest.approx(similarity, abs=0.12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_subjects": 0}, "n_subjects must be at least 1, found 0"),
        ({"n_runs": 2.5}, "n_runs must be a whole number, found 2.5"),
        ({"n_sessions": 0}, "n_sessions must be at least 1"),
        ({"shape": (7, 8)}, "three numbers of voxels"),
        ({"shape": (7, 8, 2)}, "shape must be at least 5"),
        ({"conditions": ()}, "conditions must be names"),
        ({"conditions": ("a b", "ab")}, "told apart"),
        ({"conditions": ("face", "rest")}, "'rest'"),
        ({"conditions": ("face", "c\tat")}, "tabs"),
        ({"ar1": 1.0}, "ar1 must be above -1 and below 1, found 1.0"),
        ({"drift": "much"}, "drift must be a number, found 'much'"),
        ({"signal": -1}, "signal must be at least 0"),
        ({"noise": float("nan")}, "noise must be at least 0, found nan"),
        ({"similarity": 1.5}, "at least 0 and at most 1"),
        ({"repetition_time": 0}, "repetition_time must be above 0"),
        ({"repetition_time": 60.0}, "would have 2 volumes"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_parameters_are_named_and_nothing_is_written(tmp_path, options, said):
    with pytest.raises(SourceError, match=said):
        dd.simulate_study(tmp_path / "study", **(SMALL | options))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SourceError, match="not an empty folder"):
        dd.simulate_study(tmp_path, **SMALL)
    assert contents(tmp_path) == {"mine.txt": b"precious"}


def test_an_empty_folder_is_filled(tmp_path, monkeypatch):
    assert dd.simulate_study(tmp_path / "study", **SMALL) == tmp_path / "study"
    (tmp_path / "empty").mkdir()
    dd.simulate_study(tmp_path / "empty", **SMALL)
    assert contents(tmp_path / "empty") == contents(tmp_path / "study")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    dd.simulate_study(".", **SMALL)
    assert contents(tmp_path / "here") == contents(tmp_path / "study")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failure_midway_leaves_nothing_behind(tmp_path, monkeypatch):
    whole = simulate._Study.bold

    def full(study, subject, events, rng):
        if subject == 1:
            raise OSError("No space left on device")
        return whole(study, subject, events, rng)

    monkeypatch.setattr(simulate._Study, "bold", full)
    with pytest.raises(OSError, match="No space"):
        dd.simulate_study(tmp_path / "study", n_subjects=3, **SMALL)
    assert list(tmp_path.iterdir()) == []
