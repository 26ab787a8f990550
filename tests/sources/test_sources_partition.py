"""Runs become partitions, and everything wrong with them is said before any long work."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from daskdecode.errors import CorruptFileError, SourceError
from daskdecode.sources import nifti
from daskdecode.sources.partition import resolve, resolve_subjects
from daskdecode.sources.run import Run

SHAPE = (7, 8, 9)


@pytest.fixture
def image(tmp_path):
    """Write a small 4-D image and give its path."""

    def write(name="bold.nii.gz", *, n=12, shape=SHAPE, affine=None, tr=2.5) -> Path:
        made = nib.Nifti1Image(np.zeros((*shape, n), np.int16), np.diag([3.0, 3.5, 4.0, 1.0]) if affine is None else affine)
        made.header.set_zooms((3.0, 3.5, 4.0, tr))
        made.header.set_xyzt_units("mm", "sec")
        nib.save(made, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture(autouse=True)
def _no_voxel_is_read(monkeypatch):
    monkeypatch.setattr(nifti, "_read_block", lambda *args: pytest.fail("read voxels"))


def _partitions(runs):
    return [p for file in resolve(runs) for p in file.partitions]


def _table(counts: dict[str, int], column="run") -> pd.DataFrame:
    names = [name for name, n in counts.items() for _ in range(n)]
    return pd.DataFrame({"label": [f"c{i % 3}" for i in range(len(names))], column: names})


# --- what comes out ---------------------------------------------------------------------------------------------------------------


def test_one_file_one_run(image):
    path = image()
    (file,) = resolve([Run(path, labels=["a", "b"] * 6, metadata={"EchoTime": 0.03})])
    (run,) = file.partitions
    assert file.path == path
    assert (run.subject, run.session, run.task, run.run, run.start, run.stop) == ("1", None, None, "1", 0, 12)
    assert run.labels.dtype.kind == "U"
    assert list(run.labels) == ["a", "b"] * 6
    np.testing.assert_allclose(run.time_s, np.arange(12) * 2.5)
    assert run.metadata == {"EchoTime": 0.03}
    assert run.repetition_time == 2.5


def test_run_column_cuts_a_file_into_runs(image):
    (file,) = resolve([Run(image(), labels=_table({"0": 5, "1": 3, "7": 4}, "chunks"))])
    assert [(p.run, p.start, p.stop) for p in file.partitions] == [("0", 0, 5), ("1", 5, 8), ("7", 8, 12)]
    assert [p.time_s[0] for p in file.partitions] == [0, 0, 0]
    assert list(file.partitions[1].labels) == ["c2", "c0", "c1"]


def test_without_labels_all_is_rest(image):
    assert set(_partitions([Run(image())])[0].labels) == {"rest"}


@pytest.mark.parametrize(("drop", "start", "stop"), [(0, 0, 12), (3, 3, 12), (-2, 0, 10)])
@pytest.mark.parametrize("given_for", ["all volumes", "kept volumes"])
def test_drop_volumes(image, drop, start, stop, given_for):
    labels = [f"v{i}" for i in range(12)]
    (run,) = _partitions([Run(image(), labels=labels[start:stop] if given_for == "kept volumes" else labels, drop_volumes=drop)])
    assert (run.start, run.stop) == (start, stop)
    assert list(run.labels) == labels[start:stop]
    np.testing.assert_allclose(run.time_s, np.arange(start, stop) * 2.5)


@pytest.mark.parametrize("given_for", ["all volumes", "kept volumes"])
@pytest.mark.parametrize("drop", [2, -2])
def test_drop_volumes_of_each_run_in_a_file(image, drop, given_for):
    whole = _table({"0": 5, "1": 7})
    whole["label"] = [f"v{i}" for i in range(12)]
    kept = [*range(2, 5), *range(7, 12)] if drop > 0 else [*range(3), *range(5, 10)]
    table = whole if given_for == "all volumes" else whole.iloc[kept]
    runs = _partitions([Run(image(), labels=table, drop_volumes=drop)])
    assert [i for p in runs for i in range(p.start, p.stop)] == kept
    assert [label for p in runs for label in p.labels] == [f"v{i}" for i in kept]
    assert [p.time_s[0] for p in runs] == ([5.0, 5.0] if drop > 0 else [0, 0])


def test_events_are_timed_from_the_first_acquired_volume(image, tmp_path):
    events = tmp_path / "events.tsv"
    events.write_text("onset\tduration\ttrial_type\n10\t10\tface\n")
    (run,) = _partitions([Run(image(), events=events, drop_volumes=2, hrf_delay_s=5.0)])
    assert list(run.labels) == ["rest"] * 4 + ["face"] * 4 + ["rest"] * 2
    (run,) = _partitions([Run(image(), events=pd.read_csv(events, sep="\t"), hrf_delay_s=0)])
    assert list(run.labels) == ["rest"] * 4 + ["face"] * 4 + ["rest"] * 4


def test_repetition_time_explicit_then_side_car_then_header(image):
    path = image(tr=2.5)
    assert _partitions([Run(path, repetition_time=3, metadata={"RepetitionTime": 2})])[0].repetition_time == 3.0
    assert _partitions([Run(path, metadata={"RepetitionTime": 2})])[0].repetition_time == 2.0
    assert _partitions([Run(path)])[0].time_s[1] == 2.5


def test_unnamed_runs_are_counted_within_subject_and_session(image):
    runs = [
        Run(image(f"{n}.nii"), subject=subject, session=session)
        for n, (subject, session) in enumerate([("1", "a"), ("1", "a"), ("1", "b"), ("2", None), ("2", None)])
    ]
    assert [p.run for p in _partitions(runs)] == ["1", "2", "1", "1", "2"]


def test_tasks_that_share_run_names_come_in_front_of_them(image):
    named = [("faces", "01"), ("faces", "02"), ("words", "01")]
    runs = [Run(image(f"{n}.nii"), task=task, run=run) for n, (task, run) in enumerate(named)]
    assert [p.run for p in _partitions(runs)] == ["faces-01", "faces-02", "words-01"]
    other = Run(image("other.nii"), subject="2", task="faces", run="01")
    assert _partitions([*runs, other])[-1].run == "01"


def test_prefixes_and_numbers_are_taken_as_bids_entities(image):
    run = Run(image(), subject="sub-03", session="ses-pre", task="task-rest", run=7)
    assert (run.subject, run.session, run.task, run.run) == ("03", "pre", "rest", "7")


def test_a_pair_and_a_single_run_object(image):
    path = image("bold.img")
    (file,) = resolve(Run(path.with_suffix(".hdr")))
    assert file.header.data_path == path


# --- what is only odd -------------------------------------------------------------------------------------------------------------


def _warned(caplog, runs) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="daskdecode"):
        resolve(runs)
    return [record.getMessage() for record in caplog.records]


def test_runs_of_which_nothing_says_what_happened_are_named(image, caplog):
    labelled = Run(image("0.nii"), labels=["rest"] * 12, run="a")
    bare = [Run(image(f"{n}.nii"), run=f"b{n}", session=None) for n in range(1, 8)]
    assert _warned(caplog, [labelled]) == []
    assert _warned(caplog, [labelled, bare[0]]) == ["Neither labels nor events for sub-1/run-b1: all volumes are labelled 'rest'."]
    (line,) = _warned(caplog, bare)
    assert "sub-1/run-b1, sub-1/run-b2" in line
    assert "sub-1/run-b5 and 2 more" in line
    (line,) = _warned(caplog, [Run(image("s.nii"), subject="2", session="x")])
    assert "sub-2/ses-x/run-1" in line


def test_repetition_times_that_differ_within_a_subject_are_named(image, caplog):
    def run(n, tr, **options):
        return Run(image(f"{n}.nii", tr=tr), labels=["a"] * 12, **options)

    runs = [run(1, 2.5), run(2, 2.0), run(3, 2.5), run(4, 3.0, subject="2")]
    (line,) = _warned(caplog, runs)
    assert line.startswith("Runs of subject '1' differ in repetition time: 2.5 s in sub-1/run-1, but 2 s in sub-1/run-2.")
    assert [p.repetition_time for p in _partitions(runs)] == [2.5, 2.0, 2.5, 3.0]
    assert [p.time_s[1] for p in _partitions(runs)] == [2.5, 2.0, 2.5, 3.0]
    rounded = Run(image("5.nii", tr=0.8), labels=["a"] * 12)
    assert _warned(caplog, [rounded, run(6, 2.0, metadata={"RepetitionTime": 0.8})]) == [], "a header's float32 is no other time"


# --- what is wrong ----------------------------------------------------------------------------------------------------------------


def test_label_count_says_both_numbers_and_the_way_out(image):
    path = image("sub-1_run-03_bold.nii.gz", n=121)
    with pytest.raises(SourceError) as caught:
        resolve([Run(path, labels=["a"] * 118, run="03")])
    assert str(caught.value) == (
        f"Run sub-1_run-03 has 118 labels but 121 volumes in {path}. Labels are one a volume:\n"
        "pass events= to derive them from onsets, or drop volumes on purpose with drop_volumes=."
    )
    with pytest.raises(SourceError, match=r"118 labels but 121 volumes.*drop_volumes=2, 1 run\)"):
        resolve([Run(path, labels=["a"] * 118, drop_volumes=2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": _table({"0": 5, "1": 3, "2": 4}).assign(run=list("000111000222"))}, "Run '0' .* begins at volume 0 and again at 6"),
        ({"labels": _table({"0": 6, "1": 6}), "run": "5"}, "said to be run '5', but its labels name 2 runs"),
        ({"labels": _table({"a/b": 12})}, r"run='a/b' .* not a name"),
        ({"labels": []}, "0 labels but 12 volumes"),
        ({"drop_volumes": 12}, "has 12 volumes: drop_volumes=12 leaves none"),
        ({"drop_volumes": -13}, "leaves none"),
        ({"labels": "absent.txt"}, "absent.txt does not exist"),
        ({"events": "absent.tsv"}, "absent.tsv does not exist"),
    ],
)
def test_labels_that_do_not_fit(image, options, message):
    with pytest.raises(SourceError, match=message):
        resolve([Run(image(), **options)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a"], "events": "events.tsv"}, "both labels= and events="),
        ({"subject": ""}, "subject='' .* not a name"),
        ({"subject": None}, "subject=None"),
        ({"session": "../x"}, "not a name"),
        ({"repetition_time": 0}, "repetition_time=0 .* seconds > 0"),
        ({"repetition_time": float("nan")}, "repetition_time=nan"),
        ({"hrf_delay_s": float("inf")}, "hrf_delay_s=inf"),
        ({"gap_s": -1}, "gap_s=-1"),
        ({"drop_volumes": 1.5}, "drop_volumes=1.5"),
        ({"drop_volumes": "x"}, "drop_volumes='x' .*whole number"),
        ({"drop_volumes": None}, "drop_volumes=None"),
        ({"drop_volumes": float("nan")}, "drop_volumes=nan"),
        ({"drop_volumes": float("inf")}, "drop_volumes=inf"),
        ({"repetition_time": "x"}, "repetition_time='x' .* seconds > 0, as a number"),
        ({"hrf_delay_s": "x"}, "hrf_delay_s='x'"),
        ({"hrf_delay_s": None}, "hrf_delay_s=None"),
        ({"gap_s": "x"}, "gap_s='x'"),
        ({"events": [("0", "1", "face")]}, "events= of bold.nii is a list"),
        ({"metadata": "bold.json"}, "metadata= of bold.nii is a str"),
    ],
)
def test_runs_that_cannot_be_meant(options, message):
    with pytest.raises(SourceError, match=message):
        Run("bold.nii", **options)


def test_numbers_of_any_type(image):
    run = Run(image(), drop_volumes=np.int64(2), repetition_time=np.float32(2.5), hrf_delay_s=np.int8(4), gap_s=float("inf"))
    assert _partitions([run])[0].start == 2
    assert type(Run("bold.nii", drop_volumes=3.0).drop_volumes) is int
    with pytest.raises(SourceError, match="bold= is a int"):
        Run(5)


def test_unknown_repetition_time(image):
    with pytest.raises(SourceError, match=r"repetition time of .* not known.*repetition_time="):
        resolve([Run(image(tr=0))])


def test_grids_that_differ_within_a_subject(image):
    first = Run(image("1.nii"))
    with pytest.raises(SourceError, match=r"2\.nii has shape \(9, 8, 7\), .*1\.nii has \(7, 8, 9\)"):
        resolve([first, Run(image("2.nii", shape=SHAPE[::-1]))])
    moved = np.diag([3.0, 3.5, 4.0, 1.0])
    moved[2, 3] = 1.5
    with pytest.raises(SourceError, match=r"up to 1\.5 mm"):
        resolve([first, Run(image("3.nii", affine=moved))])
    turned = np.diag([3.0, 3.5, 4.0, 1.0])
    turned[0, 1] = 0.01
    with pytest.raises(SourceError, match=r"up to 0\.07 mm"):
        resolve([first, Run(image("4.nii", affine=turned))])
    moved[2, 3] = 1e-4
    assert len(resolve([first, Run(image("5.nii", affine=moved)), Run(image("6.nii", shape=SHAPE[::-1]), subject="2")])) == 3


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"subject": "aB"}, {"subject": "Ab"}, "the subjects 'aB' and 'Ab' apart"),
        ({"session": "pre"}, {"session": "Pre"}, "the sessions 'pre' and 'Pre' apart"),
        ({"run": "a"}, {"run": "A"}, "the runs 'a' and 'A' apart"),
    ],
)
def test_names_that_only_case_tells_apart(image, first, second, said):
    """Zarr could not read the store that was made of them, and some file systems would have one folder of two."""
    runs = [Run(image("1.nii"), **first), Run(image("2.nii"), **second)]
    with pytest.raises(SourceError, match=f"Only case tells {said}"):
        resolve(runs)
    assert len(resolve([runs[0], Run(runs[1].bold, **{name: f"other{value}" for name, value in second.items()})])) == 2


def test_names_that_only_case_tells_apart_within_a_subject_are_that_subjects_alone(image):
    runs = [Run(image("1.nii"), run="a"), Run(image("2.nii"), run="A"), Run(image("3.nii"), subject="2", run="A")]
    files, failed = resolve_subjects(runs)
    assert [file.partitions[0].subject for file in files] == ["2"]
    assert list(failed) == ["1"]
    in_sessions = [Run(image("4.nii"), session="x", run="a"), Run(image("5.nii"), session="y", run="A")]
    assert len(resolve(in_sessions)) == 2


def test_runs_that_are_one_another(image, tmp_path):
    path = image()
    with pytest.raises(SourceError, match=r"given twice: .* training and for testing"):
        resolve([Run(path, run="1"), Run(path, run="2")])
    (tmp_path / "link.nii.gz").symlink_to(path)
    with pytest.raises(SourceError, match="given twice"):
        resolve([Run(path), Run(tmp_path / "link.nii.gz")])
    with pytest.raises(SourceError, match=r"Two runs of subject '1' are called '01': .*bold\.nii\.gz and .*other\.nii"):
        resolve([Run(path, run="01"), Run(image("other.nii"), run="01")])
    with pytest.raises(SourceError, match="runs with a session and runs without"):
        resolve([Run(path, session="a"), Run(image("third.nii"))])
    with pytest.raises(SourceError, match="list of runs is empty"):
        resolve([])


def test_the_image_itself(image, tmp_path):
    for absent in ("absent.nii.gz", "absent"):
        with pytest.raises(SourceError, match=f"{absent} does not exist"):
            resolve([Run(tmp_path / absent)])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE), np.eye(4)), tmp_path / "volume.nii")
    with pytest.raises(SourceError, match="3-D"):
        resolve([Run(image("good.nii")), Run(tmp_path / "volume.nii")])
    short = image("short.nii")
    short.write_bytes(short.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="ends in volume 11"):
        resolve([Run(short)])


def test_truncated_gzip_file_is_found_before_anything_is_written(image, monkeypatch):
    monkeypatch.undo()  # only decompressing it tells
    path = image()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=r"damaged|truncated"):
        resolve([Run(path)])


# --- real data --------------------------------------------------------------------------------------------------------------------


def test_the_tutorials_image_and_labels(shared_data):
    folder = shared_data / "haxby-slice"
    (file,) = resolve([Run(folder / "bold.nii.gz", labels=folder / "labels.txt")])
    assert [(p.run, p.start, p.stop) for p in file.partitions] == [(str(n), 121 * n, 121 * (n + 1)) for n in range(12)]
    labels = pd.read_csv(folder / "labels.txt", sep=" ")["labels"]
    np.testing.assert_array_equal(np.concatenate([p.labels for p in file.partitions]), labels.to_numpy(dtype=str))
    assert {p.repetition_time for p in file.partitions} == {2.5}


def test_a_bids_folders_runs(shared_data):
    folder = shared_data / "haxby-bids-slice"
    sidecar = json.loads((folder / "task-objectviewing_bold.json").read_text())
    bolds = sorted((folder / "sub-1" / "func").glob("*_bold.nii.gz"))
    events = [b.with_name(b.name.replace("bold.nii.gz", "events.tsv")) for b in bolds]
    files = resolve([Run(b, events=e, run=b.name[-14:-12], metadata=sidecar) for b, e in zip(bolds, events, strict=True)])
    assert [f.partitions[0].run for f in files] == [f"{n:02d}" for n in range(1, 13)]
    assert all((f.partitions[0].labels != "rest").sum() == 72 for f in files)
