"""decode and demo: files, numbers against the library, refusals before any work."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import daskdecode as dd


def test_decode_gives_the_library_s_numbers_and_files(run, store, tmp_path):
    result = run("decode", store, "--subject", "01", "--labels", "face, cat", "--mask", "vt", "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ds = dd.select_labels(dd.open_subject(store, "01"), ["face", "cat"])
    decoder = dd.Decoder(mask="vt").fit(ds)
    assert found["score"]["mean"] == pytest.approx(np.mean(decoder.cv_scores_["face"]))
    assert found["accuracy"]["mean"] == pytest.approx(decoder.cv_metrics_["accuracy"].mean())
    assert found["classes"] == ["cat", "face"]
    assert not found["optimistic"]
    assert "<html" in Path(found["report"]).read_text()
    assert (tmp_path / "out" / "sub-01" / "func" / "sub-01_desc-face_stat-coef_statmap.nii.gz").exists()


def test_decode_options_reach_the_decoder(run, store, tmp_path):
    options = [
        "--tune",
        "held_out",
        "--standardize",
        "zscore_sample",
        "--scoring",
        "accuracy",
        "--cv",
        "3",
        "--screening-percentile",
        "100",
    ]
    result = run("decode", store, "--subject", "sub-02", "--output", tmp_path / "out", *options, "--memory-budget", "1GB")
    assert result.exit_code == 0, result.output
    assert "optimistic" in result.stdout
    provenance = json.loads(next((tmp_path / "out").rglob("*_provenance.json")).read_text())
    said = {k: provenance[k] for k in ("tune", "standardize", "scoring", "cv", "screening_percentile")}
    assert said == {"tune": "held_out", "standardize": "zscore_sample", "scoring": "accuracy", "cv": "3", "screening_percentile": 100}
    assert set(provenance["labels"]) == {"face", "cat"}  # by default all conditions but rest


def test_text_names_report_and_chance(run, store, tmp_path):
    result = run("decode", store, "--subject", "01", "--standardize", "none", "--mask", "vt", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    line, results, report = result.stdout.splitlines()
    assert "chance 0.500" in line
    assert results == f"Results: {tmp_path / 'out'}"
    assert Path(report.removeprefix("Report:").strip()).exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--labels", "fase,cat"], "face"),  # of all subjects
        (["--estimator", "svm"], "svc"),
        (["--mask", "vtt"], "vt"),
        (["--memory-budget", "1kB"], "--memory-budget"),
        (["--subject", "03"], "01"),
        (["--subject", "01", "--labels", "fase,cat"], "face"),
        (["--subject", "01", "--labels", ","], "face,cat"),
        (["--subject", "01", "--mask", "vtt"], "vt"),
        (["--subject", "01", "--mask", "none.nii.gz"], "none.nii.gz"),
        (["--subject", "01", "--cv", "one"], "one"),
        (["--subject", "01", "--cv", "1"], "from 2"),
        (["--subject", "01", "--estimator", "svm"], "svc"),
        (["--subject", "01", "--scoring", "nonsense"], "nonsense"),
        (["--subject", "01", "--tune", "best"], "nested"),
        (["--subject", "01", "--memory-budget", "1kB"], "--memory-budget"),
        (["--subject", "01", "--memory-budget=-5GB"], "a size"),
        (["--subject", "01", "--memory-budget", "0"], "a size"),
        (["--subject", "01", "--memory-budget", "lots"], "lots"),
        (["--subject", "01", "--screening-percentile", "0"], "percentile"),
    ],
)
def test_refusals_leave_nothing(run, store, tmp_path, options, said):
    result = run("decode", store, "--output", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def _converted(tmp_path, labels):
    rng = np.random.default_rng(0)
    runs = []
    for n in range(3):
        image = nib.Nifti1Image(rng.integers(0, 1000, (4, 5, 6, 12), dtype=np.int16), np.diag([2.0, 3, 4, 1]))
        image.header.set_zooms((2, 3, 4, 2))
        nib.save(image, tmp_path / f"run-{n}.nii")
        runs.append(dd.Run(tmp_path / f"run-{n}.nii", labels=None if labels is None else [labels[v % len(labels)] for v in range(12)]))
    return dd.convert(runs, tmp_path / "s.zarr", mask="none")


def test_a_store_with_nothing_but_rest(run, tmp_path):
    result = run("decode", _converted(tmp_path, None), "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "Only 'rest' is in the store: were events or labels missing" in result.stderr


def test_labels_with_a_comma_and_two_kinds_of_accuracy(run, tmp_path):
    store = _converted(tmp_path, ["a,b", "c", "d", "rest"])
    arguments = ["decode", store, "--scoring", "accuracy", "--output"]
    result = run(*arguments, tmp_path / "out", "--labels", "a,b", "--labels", "c,d", "--json")
    assert json.loads(result.stdout)["classes"] == ["a,b", "c", "d"]
    line = run(*arguments, tmp_path / "out3").stdout.splitlines()[0]
    assert "(one against the rest, chance 0.667)" in line
    assert "(all classes, chance 0.333)" in line
    assert "accuracy, one against the rest" in next((tmp_path / "out3").rglob("*.html")).read_text()
    line = run(*arguments, tmp_path / "out2", "--labels", "c", "--labels", "d").stdout.splitlines()[0]
    assert line.count("accuracy") == 1


def test_output_that_is_somebody_else_s_is_refused_before_any_work(run, store, study, tmp_path):
    before = sorted(study.rglob("*"))
    result = run("decode", store, "--subject", "01", "--output", study)
    assert result.exit_code == 2
    assert "derivatives" in result.stderr
    assert sorted(study.rglob("*")) == before
    (tmp_path / "file").write_text("")
    assert run("decode", store, "--subject", "01", "--output", tmp_path / "file").exit_code == 2
    below = run("decode", store, "--subject", "01", "--output", tmp_path / "file" / "results")
    assert f"{tmp_path / 'file'} is a file" in below.stderr
    assert "is a store of data" in run("decode", store, "--subject", "01", "--output", store).stderr


def test_demo_finds_what_was_planted_and_can_be_repeated(run, tmp_path):
    first = run("demo", "--output", tmp_path / "demo", "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert 0.6 < found["score"]["mean"] < 1
    assert found["planted_correlation"] > 0.5
    assert "simulated" in Path(found["report"]).read_text()
    again = run("demo", "--output", tmp_path / "demo", "--json")
    assert json.loads(again.stdout) == found
    assert "Simulating" not in again.stderr


def test_demo_leaves_a_folder_in_use_alone(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    result = run("demo", "--output", tmp_path)
    assert result.exit_code == 2
    assert "--output" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_decode_scales_and_cleans_inside_the_folds(run, store, tmp_path):
    whole = dd.open_subject(store, "01")
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.standard_normal((whole.sizes["time"], 2)), columns=["trans_x", "rot_z"])
    table.to_csv(tmp_path / "confounds.tsv", sep="\t", index=False)
    options = ["--standardize", "zscore_fold", "--confounds", tmp_path / "confounds.tsv", "--engine", "dual", "--mask", "vt"]
    result = run("decode", store, "--subject", "01", *options, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    ds = dd.select_labels(dd.assign_confounds(whole, table), ["face", "cat"])
    decoder = dd.Decoder(mask="vt", standardize="zscore_fold", confounds=["trans_x", "rot_z"], engine="dual").fit(ds)
    assert json.loads(result.stdout)["score"]["mean"] == pytest.approx(np.mean(decoder.cv_scores_["face"]))
    provenance = json.loads(next((tmp_path / "out").rglob("*_provenance.json")).read_text())
    assert provenance["confounds"] == ["trans_x", "rot_z"]
    several = run("decode", store, *options, "--output", tmp_path / "other")
    assert several.exit_code == 2
    assert "give a path with {subject} in it" in several.stderr
