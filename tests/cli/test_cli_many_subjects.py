"""From BIDS to a table in two commands, with the faults that studies have."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import daskdecode as dd
from daskdecode.study import subject as one_subject


@pytest.fixture
def broken_study(tmp_path):
    """Four subjects: one with a truncated image, one who never saw a cat, one with fewer runs."""
    bids = dd.simulate_study(tmp_path / "bids", n_subjects=4, n_runs=3, shape=(7, 9, 8), n_blocks=1, signal=1.0)
    image = bids / "sub-02" / "func" / "sub-02_task-objectviewing_run-03_bold.nii.gz"
    image.write_bytes(image.read_bytes()[:-900])
    for path in (bids / "sub-03" / "func").glob("*_events.tsv"):
        events = pd.read_csv(path, sep="\t")
        events[events["trial_type"] != "cat"].to_csv(path, sep="\t", index=False)
    return bids


def test_two_commands(broken_study, run, tmp_path):
    store, out = tmp_path / "study.zarr", tmp_path / "results"
    converted = run("convert", broken_study, store)
    assert converted.exit_code == 1
    assert "subject 02: NOT CONVERTED" in converted.stdout
    decode = ["decode", store, "--labels", "face,cat", "--output", out, "--memory-budget", "1GB"]
    decoded = run(*decode)
    assert decoded.exit_code == 1, decoded.output
    lines = decoded.stdout.splitlines()
    assert lines[0].split() == ["subject", "folds", "roc_auc", "accuracy"]
    assert [line.split()[0] for line in lines[1:5]] == ["01", "02", "03", "04"]
    assert "02       failed: It could not be converted: " in lines[2]
    assert "run-03_bold.nii.gz" in lines[2]
    assert "03       failed: No volume has the label 'cat'" in lines[3]
    assert lines[5].startswith("2 of 4 subjects are decoded, mean roc_auc 0.")
    assert "Traceback" not in decoded.output

    # Those that could be decoded are as they are alone.
    for subject in ("01", "04"):
        alone = run(*decode[:-1], "1GB", "--subject", subject, "--output", tmp_path / "alone", "--json")
        assert alone.exit_code == 0
        table = pd.read_csv(out / "study_subjects.tsv", sep="\t", index_col="participant_id")
        assert table.loc[f"sub-{subject}", "score"] == json.loads(alone.stdout)["score"]["mean"]
        for path in (tmp_path / "alone" / f"sub-{subject}").rglob("*.*"):
            assert path.read_bytes() == (out / path.relative_to(tmp_path / "alone")).read_bytes()
        report = f"sub-{subject}_desc-decoding_report.html"
        assert (tmp_path / "alone" / report).read_bytes() == (out / report).read_bytes()

    as_json = json.loads(run(*decode, "--json").stdout)
    assert list(as_json["failed"]) == ["02", "03"]
    assert [s["status"] for s in as_json["subjects"]] == ["done", "failed", "failed", "done"]
    assert as_json["accuracy"]["mean"] == pytest.approx(table["accuracy"].mean(), rel=1e-12)


def test_permutations_of_one_subject_go_on_where_they_were(store, run, tmp_path, monkeypatch):
    decode = ["decode", store, "--subject", "02", "--mask", "vt", "--estimator", "ridge_classifier", "--permutations", "9", "--json"]
    straight = json.loads(run(*decode, "--output", tmp_path / "straight").stdout)
    real, found = one_subject.permute, []

    def killed(*args, **options):
        real(*args, **options | {"n_permutations": 5})
        raise KeyboardInterrupt

    def watched(*args, **options):
        with np.load(options["path"]) as kept:
            found.append(len(kept["null"]))
        return real(*args, **options)

    out = tmp_path / "out"
    monkeypatch.setattr(one_subject, "permute", killed)
    assert run(*decode, "--output", out).exit_code == 130
    monkeypatch.setattr(one_subject, "permute", watched)
    again = json.loads(run(*decode, "--output", out).stdout)
    assert found == [5]
    assert again["pvalue"] == straight["pvalue"]
    assert not list(out.rglob("*.npz"))
    monkeypatch.setattr(one_subject, "permute", None)  # now all is there
    assert json.loads(run(*decode, "--output", out).stdout) == again


def test_permutations(store, run, tmp_path):
    decode = ["decode", store, "--mask", "vt", "--estimator", "ridge_classifier", "--permutations", "9", "--output", tmp_path / "out"]
    together = run(*decode)
    assert together.exit_code == 0, together.output
    assert together.stdout.splitlines()[0].split() == ["subject", "folds", "roc_auc", "accuracy", "p"]
    alone = json.loads(run(*decode, "--subject", "02", "--json").stdout)
    assert alone["n_permutations"] == 9
    assert f"{alone['pvalue']:.4g}" == together.stdout.splitlines()[2].split()[-1]
    table = pd.read_csv(tmp_path / "out" / "study_subjects.tsv", sep="\t", index_col="participant_id")
    assert table.loc["sub-02", "pvalue"] == alone["pvalue"]


def test_some_subjects_settings_and_a_seed(store, run, tmp_path):
    asked = ["--subject", "02", "--subject", "sub-01", "--labels", "face,cat", "--mask", "vt", "--estimator", "ridge_classifier"]
    asked += ["--param", "alphas=3", "--permutations", "9", "--exchange", "blocks", "--seed", "5"]
    found = run("decode", store, *asked, "--output", tmp_path / "out", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    decoder = dd.Decoder("ridge_classifier", mask="vt", param_grid={"alphas": [3]}, scoring="roc_auc", screening_percentile=20.0)
    how = {"permutations": 9, "exchange": "blocks", "random_state": 5, "progress": False}
    expected = dd.decode_study(store, decoder, labels=["face", "cat"], subjects=["02", "01"], **how)
    assert [subject["subject"] for subject in told["subjects"]] == ["02", "01"]
    assert [subject["pvalue"] for subject in told["subjects"]] == expected.pvalue.values.tolist()
    for subject in told["subjects"]:
        name = f"sub-{subject['subject']}/func/sub-{subject['subject']}_desc-decoding_permutations.json"
        test = json.loads((tmp_path / "out" / name).read_text())
        assert (test["random_state"], test["exchange"]) == (5, "blocks")


def test_one_session_of_every_subject(run, tmp_path):
    bids = dd.simulate_study(tmp_path / "bids", n_subjects=2, n_sessions=2, n_runs=2, shape=(7, 9, 8), n_blocks=1, signal=1.0)
    store = tmp_path / "s.zarr"
    dd.convert(bids, store, mask="none", progress=False)
    session = dd.open_subject(store, "01").session.values[0]
    decode = ["decode", store, "--estimator", "ridge_classifier", "--screening-percentile", "100", "--json"]
    of_all = json.loads(run(*decode, "--output", tmp_path / "all").stdout)["subjects"]
    of_one = json.loads(run(*decode, "--session", session, "--output", tmp_path / "one").stdout)["subjects"]
    assert [[subject["n_folds"] for subject in subjects] for subjects in (of_all, of_one)] == [[4, 4], [2, 2]]
    alone = json.loads(run(*decode, "--session", session, "--subject", "02", "--output", tmp_path / "alone").stdout)
    assert alone["score"] == of_one[1]["score"]
