"""A study with the faults that studies have, and its store, made once."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import daskdecode as dd


def _without_condition(bids: Path, subject: str, condition: str) -> None:
    for path in (bids / f"sub-{subject}" / "func").glob("*_events.tsv"):
        events = pd.read_csv(path, sep="\t")
        events[events["trial_type"] != condition].to_csv(path, sep="\t", index=False)


@pytest.fixture(scope="session")
def study_bids(tmp_path_factory) -> Path:
    """Four subjects of four runs, but the third has three; the fourth never saw a cat."""
    bids = dd.simulate_study(tmp_path_factory.mktemp("study") / "bids", n_subjects=4, n_runs=4, shape=(7, 9, 8), n_blocks=1, signal=1.0)
    for path in (bids / "sub-03" / "func").glob("*_run-02_*"):
        path.unlink()
    _without_condition(bids, "04", "cat")
    return bids


@pytest.fixture(scope="session")
def study_masks(study_bids) -> str:
    return str(study_bids / "derivatives" / "daskdecode-simulation" / "sub-{subject}" / "anat" / "sub-{subject}_")


@pytest.fixture(scope="session")
def study_store(study_bids, study_masks, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("study") / "study.zarr"
    rois = {"vt": f"{study_masks}label-vt_mask.nii.gz"}
    dd.convert(study_bids, store, mask=f"{study_masks}desc-brain_mask.nii.gz", rois=rois, progress=False)
    return store
