"""Events to labels: the rule case by case, and what it gives on real data."""

from __future__ import annotations

from random import Random

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from nilearn import signal

from daskdecode.errors import SourceError
from daskdecode.sources.events import HRF_DELAY_S, events_to_labels
from daskdecode.sources.labels import read_label_table


def _events(*rows: tuple[float, float, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["onset", "duration", "trial_type"])


def _labels(*rows, n=10, tr=2.0, delay=0.0, **options) -> str:
    """Labels as one letter a volume, '.' for rest."""
    labels = events_to_labels(_events(*rows), n, tr, hrf_delay_s=delay, **options)
    assert labels.dtype.kind == "U"
    return "".join(np.where(labels == "rest", ".", labels))


def test_a_block_labels_its_volumes():
    assert _labels((4, 8, "a")) == "..aaaa...."


def test_brief_stimuli_are_joined_over_short_gaps_only():
    stimuli = [(t, 0.5, "a") for t in (4, 6, 8, 10)]
    assert _labels(*stimuli) == "..aaa.....", "one block from 4 to 10.5 s"
    assert _labels(*stimuli, gap_s=1.0) == "..aaaa....", "each stimulus still gets the volume it falls in"
    assert _labels((2, 2, "a"), (8, 2, "a"), gap_s=4) == ".aaaa....."
    assert _labels((2, 2, "a"), (8, 2, "a"), gap_s=3.9) == ".a..a....."


def test_another_condition_in_the_gap_keeps_blocks_apart():
    assert _labels((2, 2, "a"), (8, 2, "a"), (5, 0, "b"), gap_s=4) == ".ab.a....."
    assert _labels((2, 2, "a"), (8, 2, "a"), (4, 4, "b"), gap_s=4) == ".abba....."


def test_events_of_one_condition_may_overlap_and_come_in_any_order():
    assert _labels((8, 4, "a"), (2, 4, "a"), (4, 2, "a"), gap_s=0) == ".aa.aa...."


def test_the_haemodynamic_delay_shifts_blocks():
    assert _labels((4, 8, "a"), delay=4) == "....aaaa.."
    assert _labels((4, 8, "a"), delay=-4) == "aaaa......"
    assert _labels((14, 8, "a"), delay=4) == ".........a"


def test_half_a_volume_is_enough_and_less_is_rest():
    assert _labels((3, 4, "a")) == ".aaa......"
    assert _labels((3.01, 3.98, "a")) == "..a......."


def test_of_two_conditions_the_one_that_covers_more_wins():
    assert _labels((2, 3.2, "a"), (5.2, 4.8, "b")) == ".aabb....."
    assert _labels((2, 2.8, "a"), (4.8, 5.2, "b")) == ".abbb....."


def test_equal_cover_goes_to_the_later_onset_whatever_the_order_of_rows():
    rows = [(2, 3, "a"), (5, 3, "b")]
    assert _labels(*rows) == _labels(*reversed(rows)) == ".abb......"
    rows = [(2, 3, "b"), (5, 3, "a")]
    assert _labels(*rows) == _labels(*reversed(rows)) == ".baa......"
    assert _labels((2, 6, "b"), (2, 4, "c")) == ".bbb......"
    assert _labels((2, 4, "c"), (2, 6, "b")) == ".bbb......", "at one onset, the first by name though it ends later"
    rows = [(2, 4, "b"), (2, 4, "a")]
    assert _labels(*rows) == _labels(*reversed(rows)) == ".aa.......", "at one onset, the first by name"


def test_conditions_that_together_fill_half_a_volume_leave_no_rest():
    assert _labels((2, 0.6, "a"), (3.0, 0.7, "b"), gap_s=0) == ".b........"


def test_a_brief_single_event_gets_the_volume_of_its_middle():
    assert _labels((4.9, 0.2, "a")) == "..a......."
    assert _labels((5.0, 0, "a")) == "..a......."
    assert _labels((5.5, 0.8, "a")) == "..a.......", "straddling two volumes"
    assert _labels((4, 4, "b"), (5, 0.2, "a")) == "..bb......", "but takes nothing from another block"


def test_decimal_times_do_not_fall_beside_the_half():
    tr = 0.7
    onsets = np.arange(0, 70) * tr * 2
    labels = events_to_labels(_events(*((t + tr / 2, tr, "a") for t in onsets.round(6))), 140, tr, gap_s=0, hrf_delay_s=0.0)
    assert (labels == "a").all(), "each event covers exactly half of two volumes"


def test_rows_without_a_trial_type_or_duration():
    table = pd.DataFrame({"onset": ["n/a", "4", "8"], "duration": ["1", "n/a", "4"], "trial_type": ["n/a", "a", "b"]})
    labels = events_to_labels(table, 10, 2.0, hrf_delay_s=0)
    assert "".join(np.where(labels == "rest", ".", labels)) == "..a.bb...."


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "float64", "object", "string"])
def test_missing_durations_of_any_type_are_none(dtype):
    durations = pd.Series([None, 4] if dtype != "string" else [None, "4"], dtype=dtype)
    table = pd.DataFrame({"onset": pd.array([4, 8], dtype="Int64"), "duration": durations, "trial_type": pd.Categorical(["a", "b"])})
    assert list(events_to_labels(table, 6, 2.0, hrf_delay_s=0)) == ["rest", "rest", "a", "rest", "b", "b"]
    table["onset"] = pd.array([4, pd.NA], dtype="Int64")
    with pytest.raises(SourceError, match="has onset '<NA>' in row 1"):
        events_to_labels(table, 6, 2.0)


def test_no_events_is_rest_and_rest_may_be_called_otherwise():
    assert (events_to_labels(_events(), 5, 2.0) == "rest").all()
    assert list(events_to_labels(_events((0, 2, "a")), 2, 2.0, hrf_delay_s=0, rest="baseline")) == ["a", "baseline"]


def test_a_file_is_read_as_bids_writes_it(tmp_path):
    path = tmp_path / "sub-1_events.tsv"
    path.write_text("onset\tduration\ttrial_type \tresponse_time\n4.0\t8.0\tscrambled pix\tn/a\n")
    assert list(events_to_labels(path, 7, 2.0, hrf_delay_s=0)) == ["rest"] * 2 + ["scrambled pix"] * 4 + ["rest"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"onset": [1], "duration": [1]}, "no column called 'trial_type'"),
        ({"onsets": [1], "duration": [1], "trial_type": ["a"]}, "no column called 'onset'. Did you mean 'onsets'"),
        ({"onset": ["soon"], "duration": [1], "trial_type": ["a"]}, "onset 'soon' in row 0"),
        ({"onset": [0, 1], "duration": [1, -1], "trial_type": ["a", "a"]}, "duration '-1' in row 1"),
        ({"onset": [4000.0], "duration": [500.0], "trial_type": ["a"]}, r"onsets go from 4000 to 4000, but the run lasts 20 s.*seconds"),
    ],
)
def test_tables_that_are_no_events(table, message):
    with pytest.raises(SourceError, match=message):
        events_to_labels(pd.DataFrame(table), 10, 2.0)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"absent_events\.tsv does not exist"):
        events_to_labels(tmp_path / "absent_events.tsv", 10, 2.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60), st.sampled_from("abc")), max_size=12), st.randoms(), st.integers(0, 50))
@example([(14, 44, "b"), (28, 30, "a"), (73, 0, "a")], Random(0), 2)
def test_labels_depend_neither_on_row_order_nor_on_where_time_starts(rows, random, shift):
    """Tenths of seconds; moving events and delay against each other changes nothing."""
    events = [(onset / 10, duration / 10, name) for onset, duration, name in rows]
    shuffled = random.sample(events, len(events))
    expected = events_to_labels(_events(*events), 20, 1.5, hrf_delay_s=shift / 10)
    np.testing.assert_array_equal(events_to_labels(_events(*shuffled), 20, 1.5, hrf_delay_s=shift / 10), expected)
    moved = [(onset + shift / 10, duration, name) for onset, duration, name in events]
    if events and min(moved)[0] < 30:
        np.testing.assert_array_equal(events_to_labels(_events(*moved), 20, 1.5, hrf_delay_s=0), expected)


@settings(deadline=None)
@given(tr=st.integers(1, 5000), decimals=st.sampled_from([3, 2]), n=st.integers(1, 60), delay=st.integers(0, 60))
def test_an_impulse_on_the_onset_of_a_volume_falls_in_it(tr, decimals, n, delay):
    """Onsets as decimal numbers of a table, which a float division puts just before their volume: 2.4 // 0.8 is 2."""
    scale = 10**decimals
    first = -(-delay // tr)  # events before the run are another matter
    assume(first < n)
    for volume in {first, (first + n) // 2, n - 1}:
        onset = (volume * tr - delay) / scale
        labels = events_to_labels(_events((onset, 0, "a")), n, tr / scale, hrf_delay_s=delay / scale)
        assert np.flatnonzero(labels == "a").tolist() == [volume]


@pytest.mark.parametrize("tr", [0.8, 2.2, 0.72, 0.1])
def test_impulses_on_every_volume(tr):
    onsets = [round(v * tr, 6) for v in range(200)]
    labels = events_to_labels(_events(*((t, 0, f"c{v}") for v, t in enumerate(onsets))), 200, tr, gap_s=0, hrf_delay_s=0.0)
    assert list(labels) == [f"c{v}" for v in range(200)]


def test_a_brief_block_that_ends_where_another_begins_has_its_volume():
    assert _labels((5.2, 0.8, "a"), (6.4, 1.6, "a"), gap_s=0) == "..aa......"


def test_time_that_conditions_share_counts_once():
    assert _labels((0, 6.6, "a"), (0, 6.6, "b"), n=5) == "aaa.."
    assert _labels((2, 0.6, "a"), (2.4, 0.5, "b"), (2.8, 0.1, "a"), n=3, gap_s=0) == ".a.", "a single event's own volume"
    assert _labels((0, 4.9, "a"), (2, 2.9, "b"), (0, 4.7, "c"), n=4) == "ab.."


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(5, 60), st.sampled_from("abc")), min_size=1, max_size=8))
def test_rest_is_where_less_than_half_a_volume_is_covered_by_anything(rows):
    """Tenths of seconds, so that coverage is counted in a table of them; TR 1.5 s."""
    busy = np.zeros(400, bool)
    for onset, duration, _ in rows:
        busy[onset : onset + duration] = True
    labels = events_to_labels(_events(*((o / 10, d / 10, c) for o, d, c in rows)), 20, 1.5, gap_s=0, hrf_delay_s=0)
    covered = busy[:300].reshape(20, 15).sum(1)
    assert (labels[covered > 7] != "rest").all()
    for volume in np.flatnonzero((labels != "rest") & (covered <= 7)):  # only a block that has won no volume may take a lesser one
        assert any(o / 10 < (volume + 1) * 1.5 and (o + d) / 10 > volume * 1.5 and d < 15 for o, d, c in rows if c == labels[volume])


@pytest.mark.parametrize("name", ["none", "NA", "null"])
def test_conditions_that_sound_like_nothing_are_conditions(tmp_path, name):
    path = tmp_path / "events.tsv"
    path.write_text(f"onset\tduration\ttrial_type\n0\t4\t{name}\n4\t4\tn/a\n8\tn/a\tface\n")
    assert list(events_to_labels(path, 5, 2.0, hrf_delay_s=0)) == [name, name, "rest", "rest", "face"]
    read = pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"])
    assert read["duration"].isna().any()
    assert list(events_to_labels(read, 5, 2.0, hrf_delay_s=0)) == [name, name, "rest", "rest", "face"]


def test_rows_with_a_field_too_many_are_not_shifted(tmp_path):
    path = tmp_path / "events.tsv"
    path.write_text("onset\tduration\ttrial_type\n4\t4\tface\t\n8\t4\tcat\t\n")
    expected = ["rest"] * 2 + ["face"] * 2 + ["cat"] * 2
    assert list(events_to_labels(path, 6, 2.0, hrf_delay_s=0)) == expected, "a trailing tab is no field"
    path.write_text("onset\tduration\ttrial_type\n4\t4\t8\tface\n")
    with pytest.raises(SourceError, match=r"events\.tsv, line 2, has 4 fields .*; expected 3, .*'onset', 'duration', 'trial_type'"):
        events_to_labels(path, 6, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hrf_delay_s": np.nan}, "hrf_delay_s=nan of The events table .*seconds, as a number"),
        ({"hrf_delay_s": "4"}, "hrf_delay_s='4'"),
        ({"hrf_delay_s": -np.inf}, "hrf_delay_s=-inf"),
        ({"gap_s": np.nan}, "gap_s=nan .*seconds >= 0"),
        ({"gap_s": -1}, "gap_s=-1"),
        ({"repetition_time": 0}, "repetition_time=0 .*seconds > 0"),
        ({"repetition_time": np.nan}, "repetition_time=nan"),
        ({"n_volumes": -1}, "n_volumes=-1 .*whole number >= 0"),
        ({"n_volumes": 2.5}, "n_volumes=2.5"),
        ({"n_volumes": None}, "n_volumes=None"),
        ({"events": [(0, 1, "a")]}, "events= is a list"),
    ],
)
def test_arguments_that_cannot_be_meant(options, message):
    arguments = {"events": _events((0, 2, "a")), "n_volumes": 10, "repetition_time": 2.0, **options}
    with pytest.raises(SourceError, match=message):
        events_to_labels(**arguments)


def test_a_gap_may_be_endless():
    assert _labels((0, 2, "a"), (18, 2, "a"), gap_s=np.inf) == "aaaaaaaaaa"


# --- Haxby ------------------------------------------------------------------------------------------------------------------------


def _haxby_events(shared_data, folder: str) -> list[pd.DataFrame]:
    files = sorted((shared_data / folder / "sub-1" / "func").glob("*_events.tsv"))
    assert len(files) == 12
    return [pd.read_csv(f, sep="\t") for f in files]


def _labels_of_all_runs(events: list[pd.DataFrame], delay: float) -> np.ndarray:
    return np.concatenate([events_to_labels(e, 121, 2.5, hrf_delay_s=delay) for e in events])


@pytest.fixture(scope="module")
def published(shared_data) -> np.ndarray:
    return read_label_table(shared_data / "haxby-slice" / "labels.txt")["label"].to_numpy()


def test_shifted_block_events_give_the_published_labels_exactly(shared_data, published):
    np.testing.assert_array_equal(_labels_of_all_runs(_haxby_events(shared_data, "haxby-bids-25mm"), 0.0), published)


def test_agreement_with_the_published_labels_is_as_documented(shared_data, published):
    events = _haxby_events(shared_data, "haxby-bids-slice")
    agreement = {delay: int((_labels_of_all_runs(events, delay) == published).sum()) for delay in np.arange(1, 5.25, 0.25)}
    assert agreement[HRF_DELAY_S] == 1356
    assert max(agreement.values()) == 1404
    assert [delay for delay, n in agreement.items() if n == 1404] == [2.0, 2.25, 2.5]
    labels = _labels_of_all_runs(events, HRF_DELAY_S)
    assert sorted(set(labels)) == sorted({"bottle", "cat", "chair", "face", "house", "rest", "scissors", "scrambledpix", "shoe"})
    assert (labels != "rest").sum() == 12 * 8 * 9, "eight blocks of nine volumes a run, no volume lost or won"


def test_best_shift_falls_over_a_run_as_documented(shared_data, published):
    """The published onsets drift against the images: measured in the images, not in the labels."""
    image, mask = (nib.load(shared_data / "haxby-slice" / name).get_fdata() for name in ("bold.nii.gz", "mask.nii.gz"))
    x = signal.clean(image[mask > 0].T, runs=np.repeat(np.arange(12), 121), detrend=True, standardize="zscore_sample").reshape(12, 121, -1)
    task = (published != "rest").reshape(12, 121)
    # How strongly the whole pattern responds in each volume of a run, its direction learnt from the other runs.
    response = []
    for run in range(12):
        others = np.arange(12) != run
        direction = x[others][task[others]].mean(0) - x[others][~task[others]].mean(0)
        response.append(x[run] @ direction)
    starts, shifts = np.arange(121) * 2.5, np.arange(0, 8, 0.25)
    best = []
    for block in range(8):
        onset, end = 12 + 36 * block, 34.5 + 36 * block
        near = (starts > onset - 11) & (starts < end + 12)
        cover = [np.clip(np.minimum(end + s, starts + 2.5) - np.maximum(onset + s, starts), 0, None)[near] for s in shifts]
        fit = [np.mean([np.corrcoef(r[near], c)[0, 1] for r in response]) for c in cover]
        best.append(float(shifts[np.argmax(fit)]))
    assert best[0] == 3.75
    assert best[-1] == 1.75
