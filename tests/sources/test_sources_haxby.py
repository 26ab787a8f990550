"""fetch_haxby: nilearn's fields from a folder that is there, one clear sentence where there is neither data nor network."""

from __future__ import annotations

import shutil
from pathlib import Path

import nilearn.datasets
import numpy as np
import pandas as pd
import pytest
import requests

import daskdecode as dd
from daskdecode.errors import SelectionError, SourceError

MASKS = ["mask4_vt", "mask8_face_vt", "mask8_house_vt", "mask8b_face_vt", "mask8b_house_vt"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(session, request, **kwargs):
        raise requests.ConnectionError(f"no network for {request.url}")

    monkeypatch.setattr(requests.Session, "send", refuse)


def lay_out_as_nilearn(folder: Path, bold: Path, labels: Path, mask: Path, subject: int = 2) -> Path:
    home = folder / "haxby2001"
    here = home / f"subj{subject}"
    here.mkdir(parents=True)
    (home / "MD5SUMS").write_text("")
    shutil.copy(mask, home / "mask.nii.gz")
    shutil.copy(bold, here / "bold.nii.gz")
    shutil.copy(labels, here / "labels.txt")
    for name in MASKS:
        shutil.copy(mask, here / f"{name}.nii.gz")
    if subject != 6:
        shutil.copy(mask, here / "anat.nii.gz")
    return folder


@pytest.fixture
def local(tmp_path):
    study = dd.simulate_study(tmp_path / "study", shape=(7, 8, 9), n_runs=1, n_blocks=1)
    bold = next(study.glob("sub-01/func/*_bold.nii.gz"))
    mask = next(study.glob("derivatives/*/sub-01/anat/*_label-vt_mask.nii.gz"))
    labels = tmp_path / "labels.txt"
    labels.write_text("labels chunks\nrest 0\n")
    return lambda subject: lay_out_as_nilearn(tmp_path / "data", bold, labels, mask, subject)


def test_fields_are_nilearns(local):
    folder = local(2)
    ours = dd.fetch_haxby(data_dir=folder, verbose=0)
    theirs = nilearn.datasets.fetch_haxby(data_dir=folder, verbose=0)
    assert set(ours) == set(theirs)
    assert {"func", "session_target", "mask_vt", "anat", "mask", "t_r", "description"} <= set(ours)
    assert all(ours[name] == theirs[name] for name in ours)
    assert ours.func == [str(folder / "haxby2001" / "subj2" / "bold.nii.gz")]
    assert Path(ours.mask_vt[0]).name == "mask4_vt.nii.gz"
    assert ours.t_r == 2.5


def test_subject_six_has_no_anatomy(local):
    bunch = dd.fetch_haxby(np.int64(6), data_dir=str(local(6)), verbose=0)
    assert bunch.anat == [None]
    assert "subj6" in bunch.func[0]


def test_real_slice_in_nilearns_layout(shared_data, tmp_path):
    real = shared_data / "haxby-slice"
    folder = lay_out_as_nilearn(tmp_path, real / "bold.nii.gz", real / "labels.txt", real / "mask.nii.gz")
    bunch = dd.fetch_haxby(data_dir=folder, verbose=0)
    labels = pd.read_csv(bunch.session_target[0], sep=" ")
    assert len(labels) == 1452
    assert labels.chunks.nunique() == 12


def test_without_data_and_network_one_sentence_says_what_to_do(tmp_path):
    with pytest.raises(SourceError) as raised:
        dd.fetch_haxby(data_dir=tmp_path, verbose=0)
    message = str(raised.value)
    assert "Subject 2" in message
    assert str(tmp_path) in message
    assert "ConnectionError" in message
    assert "data_dir=" in message
    assert "\n" not in message


@pytest.mark.parametrize("subject", [0, 7, "2", True, None])
def test_no_such_subject(subject, tmp_path):
    with pytest.raises(SelectionError, match="choose one of 1, 2, 3, 4, 5, 6"):
        dd.fetch_haxby(subject, data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
