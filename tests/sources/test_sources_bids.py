"""find_runs: which images, which events, which side-cars, and an error wherever that is not settled."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

import daskdecode as dd
from daskdecode.errors import SelectionError, SourceError
from daskdecode.sources import bids


class Folder:
    """A BIDS folder with images that nobody opens."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, *names: str, text: str = "") -> Folder:
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return self

    def side_car(self, name: str, **keys) -> Folder:
        return self.put(name, text=json.dumps(keys))


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "study")


def one(folder: Folder, **options) -> dd.Run:
    (run,) = dd.find_runs(folder.root, **options)
    return run


def names(runs: list[dd.Run]) -> list[tuple[str | None, ...]]:
    return [(run.subject, run.session, run.task, run.run) for run in runs]


def test_real_data(shared_data):
    for study in ("haxby-bids-slice", "haxby-bids-25mm"):
        runs = dd.find_runs(shared_data / study)
        assert names(runs) == [("1", None, "objectviewing", f"{i:02d}") for i in range(1, 13)]
        for run in runs:
            assert Path(run.events).name == Path(run.bold).name.replace("_bold.nii.gz", "_events.tsv")
            assert Path(run.events).exists()
            assert run.metadata == {"RepetitionTime": 2.5, "TaskName": "objectviewing"}


def test_a_simulated_study_is_found_whole(tmp_path):
    study = dd.simulate_study(tmp_path / "study", n_subjects=2, n_sessions=2, n_runs=2, n_blocks=1, shape=(7, 8, 9))
    runs = dd.find_runs(study)
    assert names(runs) == [(s, v, "objectviewing", r) for s in ("01", "02") for v in ("01", "02") for r in ("01", "02")]
    assert {run.metadata["RepetitionTime"] for run in runs} == {2.0}
    assert all(Path(run.events).exists() for run in runs)


def test_natural_order_and_files_that_are_no_runs(folder):
    folder.put(*[f"sub-{s}/func/sub-{s}_task-x_run-{r}_bold.nii" for s in ("b", "10", "2") for r in (10, 9, 1)])
    folder.put(
        "sub-2/func/sub-2_task-x_run-1_sbref.nii", "sub-2/func/._sub-2_task-x_run-1_bold.nii", "sub-2/func/sub-2_task-x_bold.json.orig"
    )
    folder.put("sub-2/anat/sub-2_T1w.nii", "sub-2/func/sub-2_task-x_run-1_bold.nii.md5", "code/sub-3_task-x_bold.nii")
    assert names(dd.find_runs(folder.root)) == [(s, None, "x", r) for s in ("2", "10", "b") for r in ("1", "9", "10")]


# --- side-cars and events ------------------------------------------------------------------------------------------------------------


def test_side_cars_of_four_levels_are_merged_and_the_closest_wins(folder):
    image = "sub-1/ses-a/func/sub-1_ses-a_task-x_run-1"
    folder.put(f"{image}_bold.nii.gz", "sub-1/ses-a/func/sub-1_ses-a_task-x_run-2_bold.nii.gz")
    folder.side_car("task-x_bold.json", RepetitionTime=1.0, A=1, B=1, C=1)
    folder.side_car("sub-1/sub-1_task-x_bold.json", B=2, C=2)
    folder.side_car("sub-1/ses-a/sub-1_ses-a_bold.json", C=3)
    folder.side_car(f"{image}_bold.json", D=4)
    folder.side_car("task-y_bold.json", RepetitionTime=9.0)
    folder.side_car("task-x_events.json", RepetitionTime=8.0)
    folder.side_car("sub-1/sub-1_ses-b_bold.json", RepetitionTime=7.0)
    first, second = dd.find_runs(folder.root)
    assert first.metadata == {"RepetitionTime": 1.0, "A": 1, "B": 2, "C": 3, "D": 4}
    assert second.metadata == {"RepetitionTime": 1.0, "A": 1, "B": 2, "C": 3}


def test_of_two_side_cars_in_one_folder_the_specific_one_wins(folder):
    folder.put("sub-1/func/sub-1_task-x_bold.nii.gz")
    folder.side_car("bold.json", RepetitionTime=9.0, Manufacturer="any")
    folder.side_car("task-x_bold.json", RepetitionTime=2.0)
    assert one(folder).metadata == {"RepetitionTime": 2.0, "Manufacturer": "any"}


def test_a_side_car_that_changed_is_read_anew(folder):
    folder.put("sub-1/func/sub-1_task-x_bold.nii.gz").side_car("task-x_bold.json", RepetitionTime=2.0)
    assert one(folder).metadata["RepetitionTime"] == 2.0
    folder.side_car("task-x_bold.json", RepetitionTime=3.0)
    assert one(folder).metadata["RepetitionTime"] == 3.0


@pytest.mark.parametrize(("text", "said"), [('{"RepetitionTime": 2', "cannot be read"), ("[1]", "holds a list")])
def test_a_broken_side_car_is_named(folder, text, said):
    folder.put("sub-1/func/sub-1_task-x_bold.nii.gz").put("task-x_bold.json", text=text)
    with pytest.raises(SourceError, match=f"task-x_bold.json {said}"):
        dd.find_runs(folder.root)


def test_a_byte_order_mark_is_no_obstacle(folder):
    folder.put("sub-1/func/sub-1_task-x_bold.nii.gz").put("task-x_bold.json", text='\ufeff{"RepetitionTime": 2.0}')
    assert one(folder).metadata == {"RepetitionTime": 2.0}


EVENTS = [
    "task-x_events.tsv",
    "sub-1/sub-1_task-x_events.tsv",
    "sub-1/ses-a/sub-1_ses-a_task-x_events.tsv",
    "sub-1/ses-a/func/sub-1_ses-a_task-x_events.tsv",
    "sub-1/ses-a/func/sub-1_ses-a_task-x_run-1_events.tsv",
]


@pytest.mark.parametrize("n_levels", range(6))
def test_the_closest_events_are_taken(folder, n_levels):
    folder.put("sub-1/ses-a/func/sub-1_ses-a_task-x_run-1_bold.nii.gz", *EVENTS[:n_levels])
    folder.put(
        "task-y_events.tsv", "sub-1/ses-a/func/sub-1_ses-a_task-x_run-2_events.tsv", "sub-1/ses-a/func/sub-1_ses-a_task-x_run-1_physio.tsv"
    )
    found = one(folder).events
    assert found == (folder.root / EVENTS[n_levels - 1] if n_levels else None)


def test_two_events_that_apply_alike_are_an_error(folder):
    folder.put("sub-1/func/sub-1_task-x_acq-y_run-1_bold.nii.gz")
    folder.put("sub-1/func/sub-1_task-x_run-1_events.tsv", "sub-1/func/sub-1_task-x_acq-y_events.tsv")
    with pytest.raises(SourceError, match=r"Both .*acq-y_events.tsv and .*run-1_events.tsv"):
        dd.find_runs(folder.root)


# --- derivatives ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def preprocessed(folder) -> Folder:
    """A raw study and what fMRIPrep makes of it: two spaces, no events, and the run index without its zero."""
    folder.put("dataset_description.json", text="{}").side_car("task-x_bold.json", RepetitionTime=2.0, SliceTiming=[0, 1])
    folder.put("sub-1/func/sub-1_task-x_run-01_bold.nii.gz", "sub-1/func/sub-1_task-x_run-01_events.tsv")
    stem = "derivatives/fmriprep/sub-1/func/sub-1_task-x_run-1"
    for space in ("MNI152NLin2009cAsym", "T1w"):
        folder.put(f"{stem}_space-{space}_desc-preproc_bold.nii.gz")
        folder.side_car(f"{stem}_space-{space}_desc-preproc_bold.json", RepetitionTime=2.0, SkullStripped=False)
    return folder


def test_raw_runs_are_meant_unless_a_space_is_asked_for(preprocessed):
    assert one(preprocessed).bold == preprocessed.root / "sub-1/func/sub-1_task-x_run-01_bold.nii.gz"


@pytest.mark.parametrize("inside", ["", "derivatives/fmriprep"])
def test_a_derivative_has_its_own_side_car_and_the_raw_events(preprocessed, inside):
    (run,) = dd.find_runs(preprocessed.root / inside, space="T1w")
    assert run.bold == preprocessed.root / "derivatives/fmriprep/sub-1/func/sub-1_task-x_run-1_space-T1w_desc-preproc_bold.nii.gz"
    assert run.run == "1"
    assert run.events == (preprocessed.root / "sub-1/func/sub-1_task-x_run-01_events.tsv").absolute()
    assert run.metadata == {"RepetitionTime": 2.0, "SkullStripped": False}


def test_events_of_the_derivative_come_first(preprocessed):
    own = "derivatives/fmriprep/sub-1/func/sub-1_task-x_run-1_events.tsv"
    assert one(preprocessed.put(own), space="T1w").events == preprocessed.root / own


def test_events_from_a_raw_data_set_elsewhere(preprocessed, tmp_path):
    (preprocessed.root / "derivatives" / "fmriprep").rename(tmp_path / "prep")
    (alone,) = dd.find_runs(tmp_path / "prep", space="T1w")
    assert alone.events is None
    (run,) = dd.find_runs(tmp_path / "prep", space="T1w", raw_root=preprocessed.root)
    assert run.events == preprocessed.root / "sub-1/func/sub-1_task-x_run-01_events.tsv"


def test_several_spaces_and_none_asked_for_is_an_error_that_names_them(preprocessed):
    with pytest.raises(SourceError, match=r"'space': found 'MNI152NLin2009cAsym', 'T1w'. Choose one with space="):
        dd.find_runs(preprocessed.root / "derivatives" / "fmriprep")


@pytest.mark.parametrize("entity", ["space", "desc"])
def test_runs_in_different_spaces_are_no_study(folder, entity):
    folder.put(f"sub-1/func/sub-1_task-x_{entity}-A_bold.nii.gz", f"sub-2/func/sub-2_task-x_{entity}-B_bold.nii.gz")
    with pytest.raises(SourceError, match="'A', 'B'"):
        dd.find_runs(folder.root)


def test_several_descriptions_and_none_asked_for_is_an_error(preprocessed):
    preprocessed.put("derivatives/fmriprep/sub-1/func/sub-1_task-x_run-1_space-T1w_bold.nii.gz")
    with pytest.raises(SourceError, match=r"'desc': found '' \(no desc-\), 'preproc'. Choose one with desc="):
        dd.find_runs(preprocessed.root, space="T1w")
    assert "desc" not in Path(one(preprocessed, space="T1w", desc="").bold).name
    assert "desc" in Path(one(preprocessed, space="T1w", desc="preproc").bold).name


def test_derivatives_are_searched_where_there_is_nothing_raw(folder):
    folder.put("derivatives/prep/sub-1/func/sub-1_task-x_desc-preproc_bold.nii.gz")
    assert one(folder).subject == "1"


def test_two_pipelines_are_an_error_until_one_is_named(preprocessed):
    preprocessed.put("derivatives/other/sub-1/func/sub-1_task-x_run-1_space-T1w_desc-preproc_bold.nii.gz")
    with pytest.raises(SourceError, match=r"same run: .*fmriprep.*other.*bids_root"):
        dd.find_runs(preprocessed.root, space="T1w")
    (run,) = dd.find_runs(preprocessed.root / "derivatives" / "other")
    assert "other" in Path(run.bold).parts


# --- selecting -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(folder) -> Folder:
    return folder.put(
        *[
            f"sub-{s}/ses-{v}/func/sub-{s}_ses-{v}_task-{t}_bold.nii.gz"
            for s in ("01", "02", "11")
            for v in ("a", "b")
            for t in ("rest", "faces")
        ]
    )


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({}, 12),
        ({"subjects": "01"}, 4),
        ({"subjects": "sub-01"}, 4),
        ({"subjects": ["11", "sub-02"]}, 8),
        ({"subjects": 11}, 4),
        ({"sessions": "a"}, 6),
        ({"sessions": ["ses-a", "b"], "task": "faces"}, 6),
        ({"task": ["faces", "task-rest"]}, 12),
        ({"subjects": "02", "sessions": "b", "task": "rest"}, 1),
    ],
)
def test_selection(many, options, n):
    assert len(dd.find_runs(many.root, **options)) == n


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"subjects": "1"}, r"subjects='1' selects no run.*Did you mean .*'01'.*Known: '01', '02', '11'"),
        ({"subjects": ["01", "99"]}, "subjects='99'"),
        ({"sessions": "c"}, r"sessions='c'.*Known: 'a', 'b'"),
        ({"task": "face"}, r"task='face'.*Did you mean 'faces'"),
        ({"space": "MNI"}, "space='MNI'"),
        ({"entities": {"echo": "1"}}, r"entities\['echo'\]='1'"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(many, options, said):
    with pytest.raises(SelectionError, match=said):
        dd.find_runs(many.root, **options)


def test_images_of_one_run_that_differ_in_another_entity(folder):
    folder.put(*[f"sub-1/func/sub-1_task-x_echo-{e}_bold.nii.gz" for e in (1, 2)])
    with pytest.raises(SourceError, match=r"'echo': found '1', '2'. Choose one with entities=\{'echo': ...\}"):
        dd.find_runs(folder.root)
    assert "echo-2" in Path(one(folder, entities={"echo": "2"}).bold).name


def test_the_same_image_twice(folder):
    folder.put("sub-1/func/sub-1_task-x_bold.nii.gz", "sub-1/func/sub-1_task-x_bold.nii")
    with pytest.raises(SourceError, match="Several images are the same run"):
        dd.find_runs(folder.root)


# --- the folder and the options ------------------------------------------------------------------------------------------------------


def test_no_folder_and_no_runs(folder, tmp_path):
    with pytest.raises(SourceError, match=r"nowhere does not exist"):
        dd.find_runs(tmp_path / "nowhere")
    folder.put("sub-1/anat/sub-1_T1w.nii.gz", "derivatives/README")
    with pytest.raises(SourceError, match=r"No functional images in .*expected sub-<label>"):
        dd.find_runs(folder.root)


@pytest.mark.parametrize("name", ["study.v1", ".hidden", "with space", "sub-1"])
def test_the_name_of_the_folder_does_not_matter(tmp_path, name):
    folder = (
        Folder(tmp_path / name)
        .put("sub-1/func/sub-1_task-x_bold.nii.gz", "task-x_events.tsv")
        .side_car("task-x_bold.json", RepetitionTime=2.0)
    )
    run = one(folder)
    assert run.events == folder.root / "task-x_events.tsv"
    assert run.metadata == {"RepetitionTime": 2.0}


@pytest.mark.parametrize(("start", "root"), [("study", "."), (".", "study"), ("study/sub-1", "..")])
def test_relative_paths(folder, tmp_path, monkeypatch, start, root):
    folder.put("sub-1/func/sub-1_task-x_bold.nii.gz", "task-x_events.tsv").side_car("task-x_bold.json", RepetitionTime=2.0)
    monkeypatch.chdir(tmp_path / start)
    (run,) = dd.find_runs(root)
    assert Path(run.events).resolve() == (folder.root / "task-x_events.tsv").resolve()
    assert run.metadata == {"RepetitionTime": 2.0}


def test_options_reach_every_run(folder):
    folder.put("sub-1/func/sub-1_task-x_bold.nii.gz", "task-x_events.tsv")
    assert one(folder, hrf_delay_s=0.0, drop_volumes=2, repetition_time=1.5).hrf_delay_s == 0.0
    assert one(folder, drop_volumes=2).drop_volumes == 2
    labelled = one(folder, labels=["a", "b"])
    assert labelled.labels == ["a", "b"]
    assert labelled.events is None
    assert one(folder, events="mine.tsv").events == "mine.tsv"


@pytest.mark.parametrize(("option", "meant"), [("subject", "subjects"), ("hrf_delay", "hrf_delay_s"), ("metadata", "raw_root")])
def test_an_unknown_option_is_named_before_anything_is_read(option, meant):
    with pytest.raises(TypeError, match=rf"no argument '{option}'.*'{meant}'"):
        dd.find_runs("nowhere", **{option: "1"})


def test_examples_in_the_docstrings():
    assert doctest.testmod(bids).failed == 0
    assert doctest.testmod(bids).attempted
