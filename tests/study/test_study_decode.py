"""A study is its subjects, each as if it were alone."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.linear_model import RidgeClassifier
from zarr.storage import LocalStore

import daskdecode as dd
from daskdecode.errors import DaskDecodeError, DecodingError, MemoryBudgetError, SelectionError
from daskdecode.store.open import stored_subjects
from daskdecode.study.decode import Question, decode_study
from daskdecode.study.subject import DecodeSubject, Permutations
from daskdecode.testing import CountingStore

LABELS = ["face", "cat"]


def decoder(**options):
    return dd.Decoder(**{"estimator": "ridge_classifier", "memory_budget": "1GB", "mask": "vt"} | options)


def alone(store, subject, **options):
    ds = dd.select_labels(dd.open_subject(store, subject), LABELS)
    return decoder(**options).fit(ds), ds


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for the records of the study."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".daskdecode" not in p.parts}


@pytest.fixture(scope="module")
def decoded(study_store, tmp_path_factory):
    """The study, decoded into a folder."""
    folder = tmp_path_factory.mktemp("decoded") / "results"
    return decode_study(study_store, decoder(), labels=LABELS, folder=folder, progress=False), folder


def test_scores_are_those_of_each_subject_alone(decoded, study_store):
    scores, _ = decoded
    assert scores.sizes == {"subject": 4, "fold": 4, "class": 2}
    assert scores["subject"].values.tolist() == ["01", "02", "03", "04"]
    for subject, n_folds in (("01", 4), ("02", 4), ("03", 3)):
        one, ds = alone(study_store, subject)
        found = scores.sel(subject=subject)
        for name, values in one.cv_scores_.items():
            np.testing.assert_array_equal(found.score.sel({"class": name})[:n_folds], values)
        for name, column in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced_accuracy"), ("chance_accuracy", "chance")):
            np.testing.assert_array_equal(found[name][:n_folds], one.cv_metrics_[column])
        assert found.test_runs.values[:n_folds].tolist() == one.cv_metrics_["test_runs"].tolist()
        assert found.n_test.values[:n_folds].tolist() == one.cv_metrics_["n_test"].tolist()
        assert found.n_samples == ds.sizes["time"]
        assert found.n_voxels == one.n_elements_
        assert found.status == "done"
        assert found.reason == ""


def test_folds_that_a_subject_has_not_are_missing(decoded):
    scores, _ = decoded
    padded = scores.sel(subject="03", fold=3)
    assert np.isnan(padded.score).all()
    assert np.isnan(padded.accuracy)
    assert padded.n_test == padded.n_train == 0
    assert padded.test_runs == ""
    assert scores.sel(subject="03").test_runs.values.tolist() == ["01", "03", "04", ""]


def test_who_cannot_be_decoded_is_recorded_with_the_reason(decoded):
    scores, folder = decoded
    failed = scores.sel(subject="04")
    assert failed.status == "failed"
    assert "No volume has the label 'cat'" in str(failed.reason.values)
    assert np.isnan(failed.score).all()
    assert failed.n_samples == 0
    table = pd.read_csv(folder / "study_subjects.tsv", sep="\t", index_col="participant_id")
    assert table["status"].tolist() == ["done", "done", "done", "failed"]
    assert "No volume has the label 'cat'" in table.loc["sub-04", "reason"]
    summary = json.loads((folder / "study_summary.json").read_text())
    assert list(summary["failed"]) == ["04"]
    assert (summary["n_subjects"], summary["n_done"]) == (4, 3)
    assert not (folder / "sub-04").exists()


def test_files_are_those_of_each_subject_alone(decoded, study_store, tmp_path):
    _, folder = decoded
    of_study = {name for name in files_of(folder) if name.startswith("study_")}
    assert of_study == {f"study_{name}" for name in ("scores.tsv", "scores.json", "subjects.tsv", "subjects.json", "summary.json")}
    for subject in ("01", "02", "03"):
        dd.write_results(alone(study_store, subject)[0], tmp_path)
    singly = files_of(tmp_path)
    found = files_of(folder)
    reports = {f"sub-{subject}_desc-decoding_report.html" for subject in ("01", "02", "03")}
    assert found.keys() - of_study - reports == singly.keys()
    assert all(found[name] == content for name, content in singly.items())


def test_the_tables_hold_every_score(decoded):
    scores, folder = decoded
    table = pd.read_csv(folder / "study_scores.tsv", sep="\t", dtype={"participant_id": str})
    assert len(table) == (4 + 4 + 3) * 2
    for row in table.to_dict("records"):
        place = {"subject": row["participant_id"].removeprefix("sub-"), "fold": row["fold"], "class": row["class"]}
        assert float(scores.score.sel(place)) == row["score"]
    subjects = pd.read_csv(folder / "study_subjects.tsv", sep="\t", index_col="participant_id")
    np.testing.assert_allclose(subjects["accuracy"].iloc[:3], scores.accuracy.mean("fold")[:3], rtol=1e-15)
    columns = json.loads((folder / "study_scores.json").read_text())
    assert set(columns) - {"Description"} >= {"participant_id", "fold", "test_runs", "class", "score"}
    summary = json.loads((folder / "study_summary.json").read_text())
    assert summary["accuracy"]["mean"] == pytest.approx(float(scores.accuracy.mean("fold").mean()), rel=1e-15)


def test_a_rerun_reads_nothing_and_gives_the_same(decoded, study_store, tmp_path):
    scores, original = decoded
    folder = tmp_path / "results"
    shutil.copytree(original, folder)
    before = files_of(folder)
    counting = CountingStore(LocalStore(study_store))
    again = decode_study(counting, decoder(memory_budget="2GB"), labels=LABELS, folder=folder, progress=False)
    assert not counting.bold_reads
    assert again.identical(scores)
    assert files_of(folder) == before


def read_subjects(counting):
    return {key.split("/")[0] for key in counting.bold_reads}


@pytest.mark.parametrize("what", ["record", "map"])
def test_a_rerun_does_what_is_missing(decoded, study_store, tmp_path, what):
    scores, original = decoded
    folder = tmp_path / "results"
    shutil.copytree(original, folder)
    gone = {"record": ".daskdecode/sub-02.json", "map": "sub-02/func/sub-02_desc-face_stat-coef_statmap.nii.gz"}[what]
    (folder / gone).unlink()
    counting = CountingStore(LocalStore(study_store))
    assert decode_study(counting, decoder(), labels=LABELS, folder=folder, progress=False).identical(scores)
    assert read_subjects(counting) == {"sub-02"}
    assert files_of(folder) == files_of(original)


def test_results_that_another_analysis_replaced_are_made_again(decoded, study_store, tmp_path):
    scores, original = decoded
    folder = tmp_path / "results"
    shutil.copytree(original, folder)
    dd.write_results(alone(study_store, "02", estimator="svc", param_grid={"C": 1})[0], folder)
    counting = CountingStore(LocalStore(study_store))
    assert decode_study(counting, decoder(), labels=LABELS, folder=folder, progress=False).identical(scores)
    assert read_subjects(counting) == {"sub-02"}
    assert files_of(folder) == files_of(original)


def test_a_rerun_does_what_has_changed(decoded, study_store, tmp_path):
    _, original = decoded
    folder, store = tmp_path / "results", tmp_path / "study.zarr"
    shutil.copytree(original, folder)
    shutil.copytree(study_store, store)
    question = Question(decoder(), LABELS, None, Permutations(), str(Path.cwd()))
    same = {name: question.fingerprint(s) for name, s in stored_subjects(study_store)[0].items()}
    assert {name: question.fingerprint(s) for name, s in stored_subjects(store)[0].items()} == same
    # Another region for one subject; one that nobody asks for makes no difference.
    mask = np.zeros((7, 9, 8), dtype=bool)
    ds = dd.open_subject(store, "01")
    mask.ravel()[ds.voxel.values[ds.mask_vt.values][:-1]] = True
    dd.add_mask(store, "vt", mask, subject="01", overwrite=True)
    dd.add_mask(store, "other", mask, subject="02")
    now = {name: question.fingerprint(s) for name, s in stored_subjects(store)[0].items()}
    assert {name for name in same if same[name] != now[name]} == {"01"}
    counting = CountingStore(LocalStore(store))
    decode_study(counting, decoder(), labels=LABELS, folder=folder, progress=False)
    assert read_subjects(counting) == {"sub-01"}


@pytest.mark.parametrize(
    "changed",
    [
        {"decoder": decoder(estimator="svc")},
        {"decoder": decoder(mask=None)},
        {"labels": ["face", "rest"]},
        {"permutations": Permutations(10)},
        {"session": "a"},
    ],
)
def test_what_is_asked_is_part_of_what_is_remembered(study_store, changed):
    stored = stored_subjects(study_store)[0]["01"]
    asked = {"decoder": decoder(), "labels": LABELS, "session": None, "permutations": Permutations(), "where": str(Path.cwd())}
    try:
        other = Question(**asked | changed).fingerprint(stored)
    except SelectionError:  # a session that is not there has no content
        return
    assert other != Question(**asked).fingerprint(stored)
    same = Question(**asked | {"decoder": decoder(memory_budget=10**9, progress=print), "labels": LABELS[::-1]})
    assert same.fingerprint(stored) == Question(**asked).fingerprint(stored)


def test_a_mask_is_told_with_the_voxels_that_it_is_matched_by(study_store):
    stored, found = stored_subjects(study_store)[0]["01"], []
    voxels = dd.open_subject(study_store, "01").voxel.values
    for order in (voxels, voxels[::-1]):
        mask = xr.DataArray(np.arange(len(voxels)) < 20, dims="voxel", coords={"voxel": order})
        found.append(Question(decoder(mask=mask), LABELS, None, Permutations(), str(Path.cwd())).fingerprint(stored))
    assert found[0] != found[1]


class Breaks(RidgeClassifier):
    """A fault of a person's own estimator, with 48 samples only: those of the subject with three runs."""

    def fit(self, X, y, sample_weight=None):
        if len(X) == 32:
            raise ZeroDivisionError("by zero")
        return super().fit(X, y, sample_weight)


def test_any_exception_is_a_reason(study_store, tmp_path):
    scores = decode_study(study_store, decoder(estimator=Breaks(), param_grid={}), labels=LABELS, folder=tmp_path / "out", progress=False)
    assert scores.status.values.tolist() == ["done", "done", "failed", "failed"]
    assert "Breaks() could not be fitted on 32 training samples x 8 features: ZeroDivisionError: by zero" in str(
        scores.reason.sel(subject="03").values
    )
    record = json.loads((tmp_path / "out" / ".daskdecode" / "sub-03.json").read_text())
    assert any("Breaks" in line or "by zero" in line for line in record["traceback"])


def test_a_damaged_store_loses_one_subject(study_store, tmp_path):
    store = tmp_path / "study.zarr"
    shutil.copytree(study_store, store)
    chunk = next((store / "sub-02" / "run-03" / "bold" / "c").rglob("0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-7])
    scores = decode_study(store, decoder(), labels=LABELS, progress=False)
    assert scores.status.values.tolist() == ["done", "failed", "done", "failed"]
    assert "sub-02/run-03" in str(scores.reason.sel(subject="02").values)


def test_permutations_are_those_of_each_subject_alone(study_store, tmp_path):
    folder = tmp_path / "out"
    scores = decode_study(
        study_store, decoder(), labels=LABELS, subjects=["sub-03", "01"], folder=folder, permutations=19, random_state=3, progress=False
    )
    assert scores["subject"].values.tolist() == ["03", "01"]
    for subject in ("01", "03"):
        test = dd.permutation_test(decoder(), alone(study_store, subject)[1], n_permutations=19, random_state=3)
        found = scores.sel(subject=subject)
        assert float(found.pvalue) == test.pvalue
        assert found.class_pvalue.values.tolist() == [test.class_pvalues[c] for c in ("cat", "face")]
        assert found.class_pvalue_fwe.values.tolist() == [test.class_pvalues_fwe[c] for c in ("cat", "face")]
        written = json.loads((folder / f"sub-{subject}/func/sub-{subject}_desc-decoding_permutations.json").read_text())
        assert written["null"] == test.null.tolist()
    assert not list((folder / ".daskdecode").glob("*.npz"))
    with pytest.warns(UserWarning, match="leave out subject 03: decoded there with other parameters"):
        without = decode_study(study_store, decoder(), labels=LABELS, subjects="01", folder=folder, progress=False)
    assert "pvalue" not in without
    assert not list((folder / "sub-01").rglob("*permutations*"))


def test_a_mask_for_each_subject(study_store, study_masks):
    by_name = decode_study(study_store, decoder(), labels=LABELS, progress=False)
    path = f"{study_masks}label-vt_mask.nii.gz"
    by_path = decode_study(study_store, decoder(mask=None), labels=LABELS, mask=path, progress=False)
    by_mapping = decode_study(
        study_store, decoder(mask=None), labels=LABELS, mask={s: path.format(subject=s) for s in ("01", "02", "03", "04")}, progress=False
    )
    assert by_name.drop_attrs().identical(by_path.drop_attrs())
    assert by_name.drop_attrs().identical(by_mapping.drop_attrs())


def test_labels_are_the_same_for_all(study_store):
    # By default all of the study's: a subject who lacks one answers another question.
    scores = decode_study(study_store, decoder(), progress=False)
    assert scores.attrs["labels"] == ["cat", "face"]
    assert scores.status.values.tolist() == ["done", "done", "done", "failed"]


def test_regressions(study_store):
    model = dd.DecoderRegressor("ridge", mask="vt", memory_budget="1GB")
    with pytest.raises(DecodingError, match="None of 4 subjects"):
        decode_study(study_store, model, labels=LABELS, progress=False)


def test_a_tree_is_a_study_too(study_store, decoded):
    found = decode_study(dd.open_study(study_store), decoder(), labels=LABELS, progress=False)
    assert found.identical(decoded[0])


@pytest.mark.parametrize(
    "change",
    [
        dd.detrend,
        lambda ds: dd.select_labels(ds, LABELS),
        lambda ds: ds.assign_coords(label=("time", ds.label.values[::-1])),
        lambda ds: ds.assign(bold=ds.bold + 1),
        None,
    ],
)
def test_a_tree_that_was_changed_is_refused_as_workers_open_the_store(study_store, change):
    tree = dd.open_study(study_store)
    if change is None:
        del tree["sub-02"]
    else:
        tree["sub-02"] = xr.DataTree(change(tree["sub-02"].to_dataset()))
    with pytest.raises(DecodingError, match="/sub-02 of the DataTree is not as it is in"):
        decode_study(tree, decoder(), labels=LABELS, progress=False)


def test_the_decoder_is_not_changed(study_store):
    mine = decoder(progress=print)
    before = dict(vars(mine))
    decode_study(study_store, mine, labels=LABELS, subjects="01", mask="vt", progress=False)
    assert vars(mine) == before


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"labels": ["fase", "cat"]}, SelectionError, "face"),
        ({"subjects": "05"}, SelectionError, "There is no subject '05'"),
        ({"subjects": []}, SelectionError, "nobody"),
        ({"mask": "vtt"}, SelectionError, "None of 4 subjects.*vt"),
        ({"mask": "none.nii.gz"}, SelectionError, "none.nii.gz"),
        ({"session": "a"}, SelectionError, "session"),
        ({"permutations": -1}, DecodingError, "permutations"),
        ({"exchange": "runs"}, DecodingError, "within_run"),
        ({"decoder": decoder(estimator="svm")}, DecodingError, "svc"),
        ({"decoder": decoder(memory_budget=1000)}, MemoryBudgetError, "memory_budget"),
        ({"decoder": RidgeClassifier()}, DecodingError, "Decoder"),
    ],
)
def test_what_is_wrong_for_all_is_found_before_anything_is_read(study_store, tmp_path, options, error, said):
    counting = CountingStore(LocalStore(study_store))
    asked = {"decoder": decoder(), "labels": LABELS, "folder": tmp_path / "out", "progress": False} | options
    with pytest.raises(error, match=said):
        decode_study(counting, asked.pop("decoder"), **asked)
    assert not counting.bold_reads
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_ours_is_left_alone(study_store, tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "raw data"}')
    with pytest.raises(DaskDecodeError, match="raw data"):
        decode_study(study_store, decoder(), labels=LABELS, folder=tmp_path, progress=False)


def test_subjects_whose_files_would_have_the_same_names_are_not_written_over_each_other(study_bids, tmp_path):
    names = {"01": "a-b", "02": "aB", "03": "A.b"}
    runs = [replace(run, subject=names[run.subject]) for run in dd.find_runs(study_bids) if run.subject in names]
    store = dd.convert(runs, tmp_path / "study.zarr", progress=False)
    with pytest.raises(SelectionError, match=r"'a-b' and 'aB' would lie in the same files \(sub-aB\): decode them one at a time"):
        decode_study(store, decoder(mask=None), labels=LABELS, folder=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SelectionError, match=r"'aB' and 'A\.b'"):
        decode_study(store, decoder(mask=None), labels=LABELS, folder=tmp_path / "out", subjects=["aB", "A.b"], progress=False)
    found = decode_study(store, decoder(mask=None), labels=LABELS, progress=False)  # nothing is written
    assert found["status"].values.tolist() == ["done"] * 3


def test_a_task_is_small_and_tells_a_worker_that_it_sees_no_folder(study_store, tmp_path):
    question = Question(decoder(), LABELS, None, Permutations(), str(Path.cwd()))
    piece = DecodeSubject(stored_subjects(study_store)[0]["01"], question, tmp_path / "elsewhere")
    assert len(pickle.dumps(piece)) < 20_000
    with pytest.raises(DaskDecodeError, match="does not see"):
        piece(None)


def test_notes_name_the_subjects(study_store):
    with pytest.warns(UserWarning, match="^Subjects 01, 02: .* same run in training and test") as told:
        decode_study(study_store, decoder(cv=3), labels=LABELS, progress=False)
    assert len(told) == 1


def test_confounds_of_each_subject(study_store, tmp_path):
    tables = {}
    for subject in ("01", "02", "03"):
        n = dd.open_subject(study_store, subject).sizes["time"]
        tables[subject] = pd.DataFrame({"trans_x": np.random.default_rng(int(subject)).standard_normal(n)})
        tables[subject].to_csv(tmp_path / f"sub-{subject}.tsv", sep="\t", index=False)
    asked = {"labels": LABELS, "folder": tmp_path / "out", "progress": False, "confounds": str(tmp_path / "sub-{subject}.tsv")}
    scores = decode_study(study_store, decoder(), **asked)
    assert scores.status.values.tolist() == ["done", "done", "done", "failed"]
    for subject, table in tables.items():
        ds = dd.select_labels(dd.assign_confounds(dd.open_subject(study_store, subject), table), LABELS)
        one = decoder(confounds=["trans_x"]).fit(ds)
        assert scores.score.sel({"subject": subject, "class": "cat"}).values[: len(one.cv_)].tolist() == one.cv_scores_["cat"]
    by_mapping = decode_study(study_store, decoder(), **asked | {"confounds": tables, "subjects": list(tables), "folder": None})
    assert by_mapping.score.equals(scores.score.sel(subject=list(tables)))
    # Another table for one of them: only that one is decoded again.
    tables["02"].iloc[::-1].to_csv(tmp_path / "sub-02.tsv", sep="\t", index=False)
    counting = CountingStore(LocalStore(study_store))
    decode_study(counting, decoder(), **asked)
    assert read_subjects(counting) == {"sub-02"}


def test_one_table_of_confounds_is_not_of_several_subjects(study_store):
    with pytest.raises(SelectionError, match="one table, but there are 4 subjects"):
        decode_study(study_store, decoder(), labels=LABELS, confounds="table.tsv", progress=False)
