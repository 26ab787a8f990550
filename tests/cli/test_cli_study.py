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
