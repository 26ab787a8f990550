"""Several runs and one folder of results: who is refused, what a killed one leaves, and what the tables hold."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import daskdecode as dd
from daskdecode.alone import began
from daskdecode.cli.main import main
from daskdecode.errors import ClusterError, DaskDecodeError, DecodingError
from daskdecode.store.open import stored_subjects
from daskdecode.study import subject
from daskdecode.study.decode import decode_study
from daskdecode.study.record import Kept, claimed
from daskdecode.study.subject import DecodeSubject, Permutations, Question, fit_subject

LABELS = ["face", "cat"]


def decoder(**options):
    # As the command line says it: what is said is compared.
    return dd.Decoder(**{"estimator": "ridge_classifier", "mask": "vt", "scoring": "roc_auc", "screening_percentile": 20.0} | options)


def decode(store, folder, **options):
    return decode_study(store, options.pop("decoder", decoder()), labels=LABELS, folder=folder, progress=False, **options)


def command(store, folder, *more):
    asked = ["decode", store, "--labels", "face,cat", "--mask", "vt", "--estimator", "ridge_classifier", "--output", folder, *more]
    return subprocess.run([sys.executable, "-m", "daskdecode.cli", *map(str, asked)], capture_output=True, text=True, check=False)


def files_of(folder: Path) -> dict[str, bytes]:
    kept = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".html" and ".daskdecode" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}


@pytest.fixture(scope="module")
def decoded(study_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together") / "results"
    return decode(study_store, folder), folder


@pytest.fixture
def copied(decoded, tmp_path):
    return shutil.copytree(decoded[1], tmp_path / "results")


def subjects(folder):
    return pd.read_csv(folder / "study_subjects.tsv", sep="\t")["participant_id"].str.removeprefix("sub-").tolist()


# --- at once ----------------------------------------------------------------------------------------------------------------------


def test_a_second_study_is_refused_and_leaves_nothing(study_store, tmp_path):
    with claimed(tmp_path / "out"), pytest.raises(DaskDecodeError, match=r"Another run writes to .*out \(study\): process \d+ on "):
        decode(study_store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_subjects_are_decoded_side_by_side_but_not_beside_a_study(study_store, tmp_path):
    """As the tasks of a job array do, each with a subject of its own."""
    folder = tmp_path / "out"
    with Kept(folder, "01", None).alone():
        with pytest.raises(DaskDecodeError, match=r"\(study\): process \d+ on "):
            decode(study_store, folder)
        with pytest.raises(DaskDecodeError, match=r"\(sub-01\): process \d+ on "), Kept(folder, "01", None).alone():
            pass
        with Kept(folder, "02", None).alone():
            pass
    with (
        claimed(folder),
        pytest.raises(DaskDecodeError, match=r"\(study\): process \d+ on "),
        Kept(folder, "01", None).alone(),
    ):
        pass


def test_a_command_is_refused_in_one_line(study_store, tmp_path):
    with claimed(tmp_path / "out"):
        refused = command(study_store, tmp_path / "out", "--subject", "01")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stderr.startswith(f"Error: Another run writes to {tmp_path / 'out'} (study): process ")
    assert not (tmp_path / "out").exists()


def test_a_study_that_ended_leaves_no_claim(decoded):
    assert not list((decoded[1] / ".daskdecode").glob("*.lock"))


@pytest.mark.parametrize("what", ["permutation test", "search"])
def test_a_file_is_one_run_s_at_a_time(what, study_store, tmp_path):
    ds = dd.select_labels(dd.open_subject(study_store, "01"), LABELS)
    path = tmp_path / "kept.npz"
    seen = []

    def run(progress=None):
        if what == "search":
            dd.search(decoder(), ds, {"alphas": [[1.0], [10.0]]}, refit=False, path=path, progress=progress)
        else:
            dd.permutation_test(decoder(), ds, n_permutations=3, path=path, progress=progress)

    def meanwhile(*_):
        with pytest.raises(DecodingError, match=rf"Another {what} writes to .*kept\.npz: process \d+ on "):
            run()
        seen.append(True)

    run(meanwhile)
    assert seen
    run()
    assert [p.name for p in tmp_path.iterdir()] == ["kept.npz"]


@pytest.mark.parametrize("claims", ["study", "sub-02"])
def test_what_outlives_its_driver_does_not_get_among_the_results_of_a_later_run(copied, study_store, monkeypatch, claims):
    """A worker of another machine ends its subject, of another question, when the next run has begun."""
    with claimed(copied):
        since = began(copied / ".daskdecode" / "study.lock")
    stored, _ = stored_subjects(study_store)
    question = Question(decoder(param_grid={"alphas": [[3.0]]}), LABELS, None, Permutations(), str(Path.cwd()))
    piece, record = DecodeSubject(stored["02"], question, copied, since), copied / ".daskdecode" / "sub-02.json"
    whole = files_of(copied)
    with contextlib.ExitStack() as later:

        def claim_then_write(*args, **kwargs):
            found = fit_subject(*args, **kwargs)
            later.enter_context(claimed(copied, claims, of=None if claims == "study" else "study"))
            record.write_text("of the later run")
            return found

        monkeypatch.setattr(subject, "fit_subject", claim_then_write)
        found = piece(None)
        assert (found["status"], files_of(copied), record.read_text()) == ("failed", whole, "of the later run")
        assert "A later run writes to" in found["reason"]
        monkeypatch.setattr(subject, "fit_subject", None)  # what begins now does not even read
        assert "A later run writes to" in piece(None)["reason"]
        assert record.read_text() == "of the later run"
    monkeypatch.setattr(subject, "fit_subject", fit_subject)
    assert piece(None)["status"] == "done"  # nobody else is there any more


# --- one after another ------------------------------------------------------------------------------------------------------------


def test_some_subjects_again_leave_the_tables_of_all(decoded, copied, study_store):
    scores, original = decoded
    (copied / ".daskdecode" / "sub-02.json").unlink()
    again = decode(study_store, copied, subjects=["02"])
    assert again["subject"].values.tolist() == ["02"]
    assert again.identical(scores.sel(subject=["02"]).assign_attrs(again.attrs))
    assert files_of(copied) == files_of(original)


def test_subjects_in_turn_give_the_tables_of_all_at_once(decoded, study_store, tmp_path):
    _, original = decoded
    for names in (["03"], ["04", "01"], ["02"]):
        decode(study_store, tmp_path, subjects=names)
    assert subjects(tmp_path) == ["01", "02", "03", "04"]
    assert files_of(tmp_path) == files_of(original)


def test_who_was_asked_something_else_is_left_out_and_named(copied, study_store):
    with pytest.warns(UserWarning, match=r"leave out subjects 01, 03, 04: decoded there with other parameters"):
        decode(study_store, copied, decoder=decoder(param_grid={"alphas": [[3.0]]}), subjects="02")
    assert subjects(copied) == ["02"]
    decode(study_store, copied)
    assert subjects(copied) == ["01", "02", "03", "04"]


def test_a_subject_that_was_mended_comes_into_the_tables(decoded, copied, study_store):
    """Decoded by itself, by the command line."""
    _, original = decoded
    path = copied / ".daskdecode" / "sub-02.json"
    failed = {"subject": "02", "status": "failed", "reason": "It was broken.", "error": "SourceError"}
    path.write_text(json.dumps(failed))
    table = copied / "study_subjects.tsv"
    table.write_text(table.read_text().replace("sub-02\tdone", "sub-02\tfailed"))
    ended = command(study_store, copied, "--subject", "02")
    assert ended.returncode == 0, ended.stderr
    assert files_of(copied) == files_of(original)


def test_a_subject_that_fails_by_itself_is_failed_in_the_tables(decoded, copied, study_store, tmp_path):
    _, original = decoded
    damaged = shutil.copytree(study_store, tmp_path / "study.zarr")
    chunk = next((damaged / "sub-02" / "run-03" / "bold" / "c").rglob("0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-7])
    together = shutil.copytree(copied, tmp_path / "together")
    for folder in (copied, together):
        (folder / ".daskdecode" / "sub-02.json").unlink()
    decode(damaged, together, subjects=["02"])
    ended = command(damaged, copied, "--subject", "02")
    assert ended.returncode == 2
    assert "sub-02/run-03" in ended.stderr
    table = pd.read_csv(copied / "study_subjects.tsv", sep="\t", index_col="participant_id")
    assert table.loc["sub-02", "status"] == "failed"
    assert table.loc["sub-02", "reason"].split(" It was damaged")[0] in ended.stderr
    for name in ("study_subjects.tsv", "study_scores.tsv"):
        assert (copied / name).read_bytes() == (together / name).read_bytes()
    assert command(study_store, copied, "--subject", "02").returncode == 0
    assert files_of(copied) == files_of(original)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ClusterError("The workers have gone.")])
def test_a_subject_that_did_not_end_is_not_done_in_the_tables(copied, study_store, monkeypatch, error):
    def ends(self, *_):
        raise error

    (copied / ".daskdecode" / "sub-02.json").unlink()
    monkeypatch.setattr(DecodeSubject, "_decode", ends)
    asked = ["decode", study_store, "--labels", "face,cat", "--mask", "vt", "--estimator", "ridge_classifier", "--subject", "02"]
    assert CliRunner().invoke(main, [*map(str, asked), "--output", str(copied)]).exit_code != 0
    table = pd.read_csv(copied / "study_subjects.tsv", sep="\t", index_col="participant_id")
    assert table.status.to_dict() == {"sub-01": "done", "sub-02": "failed", "sub-03": "done", "sub-04": "failed"}
    assert table.loc["sub-02", "reason"] == (str(error) or "It was interrupted.")


def test_a_subject_by_itself_makes_no_tables_of_a_study(study_store, tmp_path):
    ended = command(study_store, tmp_path / "out", "--subject", "01")
    assert ended.returncode == 0, ended.stderr
    assert not list((tmp_path / "out").glob("study_*"))
