"""convert, info, verify and export, as a user types them."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

import daskdecode as dd


def test_convert_and_info_agree(run, store):
    result = run("info", store, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert [s["subject"] for s in found["subjects"]] == ["01", "02"]
    assert set(found["subjects"][0]["labels"]) == {"face", "cat", "rest"}
    assert set(found["subjects"][0]["masks"]) == {"vt"}
    text = run("info", store).stdout
    assert "complete" in text
    assert f"vt {found['subjects'][0]['masks']['vt']}" in text


def test_convert_options_reach_the_library(run, study, masks, tmp_path):
    result = run("convert", study, tmp_path / "s.zarr", *masks, "--subject", "02", "--hrf-delay", "0", "--json")
    assert result.exit_code == 0, result.output
    assert [s["subject"] for s in json.loads(result.stdout)["subjects"]] == ["02"]
    direct = dd.convert(study, tmp_path / "d.zarr", mask="none", subjects=["02"], hrf_delay_s=0, progress=False)
    np.testing.assert_array_equal(dd.open_subject(tmp_path / "s.zarr").label, dd.open_subject(direct).label)
    later = run("convert", study, tmp_path / "s.zarr", *masks, "--subject", "02", "--hrf-delay", "6")
    assert later.exit_code == 2
    assert "overwrite" in later.stderr
    assert run("convert", study, tmp_path / "s.zarr", *masks, "--subject", "02", "--hrf-delay", "6", "--overwrite").exit_code == 0


def test_convert_one_image_with_a_label_table(run, tmp_path):
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.integers(0, 1000, (4, 5, 6, 12), dtype=np.int16), np.diag([2.0, 3, 4, 1]))
    image.header.set_zooms((2, 3, 4, 2.5))
    nib.save(image, tmp_path / "bold.nii.gz")
    (tmp_path / "labels.txt").write_text("labels chunks\n" + "".join(f"{('face', 'cat')[n % 2]} {n // 4}\n" for n in range(12)))
    result = run("convert", tmp_path / "bold.nii.gz", tmp_path / "s.zarr", "--labels", tmp_path / "labels.txt", "--mask", "none", "--json")
    assert result.exit_code == 0, result.output
    assert [r["run"] for r in json.loads(result.stdout)["subjects"][0]["runs"]] == ["0", "1", "2"]
    assert run("export", tmp_path / "s.zarr", tmp_path / "back.nii.gz").exit_code == 0
    np.testing.assert_array_equal(nib.load(tmp_path / "back.nii.gz").dataobj, image.dataobj)


def test_export_of_a_subject_is_one_image(run, store, tmp_path):
    result = run("export", store, tmp_path / "two.nii.gz", "--subject", "02", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"files": [str(tmp_path / "two.nii.gz")]}
    ds = dd.open_subject(store, "02")
    np.testing.assert_array_equal(nib.load(tmp_path / "two.nii.gz").get_fdata(), dd.to_nifti(ds["bold"], ds).get_fdata())


def test_verify_ends_with_1_where_a_source_has_changed(run, study, masks, tmp_path):
    copy = tmp_path / "bold.nii"
    image = nib.Nifti1Image(np.arange(4 * 5 * 6 * 7, dtype=np.int16).reshape(4, 5, 6, 7), np.eye(4))
    image.header.set_zooms((1, 1, 1, 2))
    nib.save(image, copy)
    assert run("convert", copy, tmp_path / "s.zarr", "--mask", "none").exit_code == 0
    same = run("verify", tmp_path / "s.zarr", "--json")
    assert same.exit_code == 0
    assert json.loads(same.stdout)["ok"]
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    changed = run("verify", tmp_path / "s.zarr")
    assert changed.exit_code == 1
    assert "problem" in changed.stdout
    assert not json.loads(run("verify", tmp_path / "s.zarr", "--json").stdout)["ok"]


@pytest.fixture
def runs(tmp_path):
    """Six labelled volumes of 4 x 5 x 6 voxels in each of two runs, which differ in repetition time."""
    paths = []
    for n, seconds in enumerate((2, 3)):
        image = nib.Nifti1Image(np.arange(720, dtype=np.int16).reshape(4, 5, 6, 6) % (97 + n), np.eye(4))
        image.header.set_zooms((1, 1, 1, seconds))
        nib.save(image, tmp_path / f"run-{n + 1}.nii")
        paths.append(tmp_path / f"run-{n + 1}.nii")
    return [dd.Run(path, labels=["face", "a,b", "rest"] * 2) for path in paths]


def test_info_says_which_run_has_another_repetition_time_and_what_is_not_kept(run, runs, tmp_path):
    inside, region = np.ones((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    inside[0, 0, 0], region[0, 0, :2] = False, True
    dd.convert(runs, tmp_path / "s.zarr", mask=inside, rois={"r": region})
    text = run("info", tmp_path / "s.zarr").stdout
    assert "TR 2 s (run 2: 3 s)" in text
    assert "119 of 4 x 5 x 6 (99 %)" in text
    assert "r 1 (of 2: the others are not kept)" in text


def test_info_of_a_store_that_was_not_closed_or_lacks_runs(run, runs, tmp_path):
    dd.convert(runs, tmp_path / "s.zarr", mask="none")
    root = tmp_path / "s.zarr" / "zarr.json"
    root.write_text(root.read_text().replace('"complete": true', '"complete": false', 1))
    assert "INCOMPLETE, all runs are there, but it was not closed: convert again" in run("info", tmp_path / "s.zarr").stdout
    (tmp_path / "s.zarr/sub-1/run-2/zarr.json").unlink()
    assert "INCOMPLETE, 1 run missing: convert again" in run("info", tmp_path / "s.zarr").stdout


def test_damage_is_status_2_and_one_line(run, runs, tmp_path):
    dd.convert(runs, tmp_path / "s.zarr", mask="none", rois={"r": np.ones((4, 5, 6), bool)})
    (tmp_path / "s.zarr/sub-1/mask_r/c/0").unlink()
    result = run("info", tmp_path / "s.zarr")
    assert result.exit_code == 2
    assert "mask_r" in result.stderr
    assert "--overwrite" in result.stderr
    assert run("verify", tmp_path / "s.zarr").exit_code == 1
    assert "1 problem\n" in run("verify", tmp_path / "s.zarr").stdout


@pytest.mark.parametrize("command", [["info"], ["verify"], ["convert", "nowhere.nii"]])
def test_an_address_of_no_known_kind(run, command):
    result = run(*command, "foo://x/t.zarr")
    assert result.exit_code == 2, result.output
    assert "foo" in result.stderr
    assert "fault of daskdecode" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "nowhere.zarr"], "nowhere.zarr"),
        (["verify", "nowhere.zarr"], "nowhere.zarr"),
        (["export", "nowhere.zarr", "out"], "nowhere.zarr"),
        (["convert", "nowhere", "s.zarr"], "nowhere"),
        (["convert", "nowhere", "s.zarr", "--roi", "vt"], "NAME=FILE"),
        (["convert", "nowhere", "s.zarr", "--roi", "a=1", "--roi", "a=2"], "twice"),
        (["convert", "nowhere"], "STORE"),
        (["convert", "nowhere", "s.zarr", "--hrf-delay", "late"], "late"),
        (["no-such-command"], "no-such-command"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_mendable_errors_are_one_line_and_status_2(run, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
