"""A small simulated study and its store, made once."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import daskdecode as dd
from daskdecode.cli.main import main


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Two subjects, three runs each, with the conditions face and cat."""
    return dd.simulate_study(tmp_path_factory.mktemp("cli") / "bids", n_subjects=2, n_runs=3, shape=(7, 9, 8), n_blocks=1, signal=1.0)


@pytest.fixture(scope="session")
def masks(study):
    """Options for brain mask and region."""
    anat = study / "derivatives" / "daskdecode-simulation" / "sub-{subject}" / "anat"
    return ["--mask", str(anat / "sub-{subject}_desc-brain_mask.nii.gz"), "--roi", f"vt={anat / 'sub-{subject}_label-vt_mask.nii.gz'}"]


@pytest.fixture(scope="session")
def store(study, masks, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "study.zarr"
    result = CliRunner().invoke(main, ["convert", str(study), str(path), *masks])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def run():
    """Run the command line in this process."""
    runner = CliRunner()
    return lambda *args: runner.invoke(main, [str(a) for a in args])
