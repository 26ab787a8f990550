"""Label tables in every shape that people keep them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daskdecode.errors import SourceError
from daskdecode.sources.labels import read_label_table
from daskdecode.sources.tables import read_table


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "labels chunks\nface 0\ncat 0\nrest 1\n"),
        ("labels.txt", '"labels" "chunks"\n"face" 0\n"cat" 0\n"rest" 1\n'),
        ("labels.txt", "labels   chunks \nface   0\ncat 0\nrest  1\n"),
        ("labels.csv", "label,run\nface,0\ncat,0\nrest,1\n"),
        ("labels.csv", "run, condition\n0, face\n0, cat\n1, rest\n"),
        ("labels.csv", 'label, run\n"face", "0"\n"cat", "0"\n"rest", "1"\n'),
        ("labels.tsv", "trial_type\truns\tonset\nface\t0\t0.0\ncat\t0\t2.5\nn/a\t1\t5\n"),
        ("labels.txt", "labels\tchunks\nface\t0\ncat\t0\nN/A\t1\n\n"),
        ("trailing.csv", "label,run\nface,0,\ncat,0\nrest,1,\n"),
        ("trailing.tsv", "label\trun\t\nface\t0\t\n\ncat\t0\t\nrest\t1\t\n"),
        ("quoted.csv", 'label,run,note\nface,0,"one, two\nlines"\ncat,0,\nrest,1,\n'),
        ("windows.csv", "\ufefflabel,run\r\nface,0\r\ncat,0\r\nrest,1\r\n"),
    ],
)
def test_text_tables(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    for path in (tmp_path / name, str(tmp_path / name)):
        table = read_label_table(path)
        assert list(table.columns) == ["label", "run"]
        assert list(table["label"]) == ["face", "cat", "rest"]
        assert list(table["run"]) == ["0", "0", "1"]


@pytest.mark.parametrize(
    "source",
    [
        ["face", "cat", "rest"],
        ("face", "cat", "n/a"),
        np.array(["face", "cat", "rest"]),
        pd.Series(["face", "cat", "n/a"], index=[5, 6, 7]),
        pd.Series(["face", "cat", "rest"], dtype="category"),
        pd.DataFrame({"label": ["face", "cat", "rest"]}, index=[3, 1, 2]),
        pd.DataFrame({"labels": pd.array(["face", "cat", "n/a"], dtype="string")}),
    ],
)
def test_objects_in_memory(source):
    table = read_label_table(source)
    assert list(table.columns) == ["label"]
    assert list(table["label"]) == ["face", "cat", "rest"]
    assert all(type(label) is str for label in table["label"])


def test_text_stays_text(tmp_path):
    (tmp_path / "labels.csv").write_text("label,run\nNA,01\ntrue,01\n1.50,02\nscrambled pix,02\n")
    table = read_label_table(tmp_path / "labels.csv")
    assert list(table["label"]) == ["NA", "true", "1.50", "scrambled pix"]
    assert list(table["run"]) == ["01", "01", "02", "02"]


@pytest.mark.parametrize("run", [[1, 1, 2], [1.0, 1.0, 2.0], np.array([1, 1, 2], np.int8), ["1", "1", "2"]])
def test_runs_counted_in_numbers_are_text(run):
    assert list(read_label_table(pd.DataFrame({"label": ["a", "b", "a"], "chunks": run}))["run"]) == ["1", "1", "2"]


def test_labels_that_are_numbers():
    assert list(read_label_table([1, 2.0, 2.5])["label"]) == ["1", "2", "2.5"]
    assert list(read_label_table(np.array([1, 2], np.float32))["label"]) == ["1", "2"]


@pytest.mark.parametrize("name", ["none", "None", "NA", "null", "NULL", "true", "-"])
def test_names_that_pandas_would_take_for_nothing_are_labels(tmp_path, name):
    (tmp_path / "labels.csv").write_text(f"label,run\n{name},0\nface,{name}\n")
    table = read_label_table(tmp_path / "labels.csv")
    assert list(table["label"]) == [name, "face"]
    assert list(table["run"]) == ["0", name]
    assert list(read_label_table([name, "face"])["label"]) == [name, "face"]


@pytest.mark.parametrize(
    "source",
    [
        ["face", None, "cat"],
        pd.Series(["face", np.nan, "cat"]),
        pd.Series([1.0, np.nan, 2.0]),
        pd.DataFrame({"label": ["face", "  ", "cat"]}),
        pd.DataFrame({"label": pd.array(["face", pd.NA, "cat"], dtype="string")}),
        pd.DataFrame({"label": pd.Categorical(["face", None, "cat"])}),
        pd.Series(["face", None, "cat"]).astype(object).map(str).replace("None", "nan"),
        "label\trun\nface\t0\n\t0\ncat\t0\n",
        "label,run\nface,0\n,0\ncat,0\n",
        "label\nface\n\ncat\n",
    ],
)
def test_a_missing_label_is_refused_by_its_row(tmp_path, source):
    if isinstance(source, str):
        (tmp_path / "labels.csv").write_text(source)
        source = tmp_path / "labels.csv"
    with pytest.raises(SourceError, match=r"has no label in row 1 \(counted from 0; 1 of 3 are missing\).*'rest' or 'n/a'"):
        read_label_table(source)


@pytest.mark.parametrize(
    ("content", "line", "found", "expected"),
    [
        ("label\trun\nface\t1\tok\ncat\t1\tok\n", 2, 3, 2),
        ("labels chunks\nface 1\nbig face 1\n", 3, 3, 2),
        ("labels\nbig face\n", 2, 2, 1),
        ('labels\n"big face"\nsmall face\n', 3, 2, 1),
        ("label,run\nface,1,x\n", 2, 3, 2),
        ("label,run\n\nface,1,,\n", 3, 4, 2),
        ("label,run\nface,1\ncat\n", 3, 1, 2),
        ("label,run,\nface,1,x\n", 2, 3, 2),
        ('"labels" "chunks"\n"1" "face" 0\n', 2, 3, 2),
    ],
)
def test_a_row_that_does_not_fit_its_header_is_never_shifted(tmp_path, content, line, found, expected):
    (tmp_path / "labels.txt").write_text(content)
    with pytest.raises(SourceError, match=rf"labels\.txt, line {line}, has {found} fields? .*; expected {expected},") as caught:
        read_label_table(tmp_path / "labels.txt")
    assert ("separated by tabs or commas" in str(caught.value)) is not any(s in content.split("\n")[0] for s in "\t,")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label,label,run\nface,cat,1\n", "two columns called 'label'"),
        ("label\trun\tlabel \nface\t1\tcat\n", "two columns called 'label'"),
        ("label;run\nface;1\n", "separates its columns by semicolons"),
        ('label,run\n"face,1\ncat,1\n', "a quote that is opened in line 2 is not closed"),
        ("\nlabel,run\nface,1\n", "first line is empty"),
        ("label,run\nface,\n", "no run in row 0"),
    ],
)
def test_tables_that_mislead(tmp_path, content, message):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(SourceError, match=rf"labels\.csv .*{message}"):
        read_label_table(tmp_path / "labels.csv")


@given(
    rows=st.lists(st.lists(st.text("ab 0é", min_size=1).map(str.strip).filter(bool), min_size=3, max_size=3), min_size=1),
    separator=st.sampled_from("\t, "),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path, rows, separator, end):
    table = pd.DataFrame(rows, columns=["onset", "label", "run"])
    table.to_csv(tmp_path / "labels.txt", sep=separator, index=False, lineterminator=end)
    pd.testing.assert_frame_equal(read_table(tmp_path / "labels.txt", "labels"), table.astype(object))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (pd.DataFrame({"lable": ["a"], "run": [1]}), "no column called 'label' or .* Did you mean 'lable'"),
        (pd.DataFrame({"label": ["a"], "condition": ["b"]}), "'label' and 'condition': which"),
        (pd.DataFrame({"label": ["a"], "run": [1], "chunks": [1]}), "'run' and 'chunks': which"),
        (pd.DataFrame({"label": ["a", "b"], "run": [1, np.nan]}), "no run in row 1"),
        (np.array([["a", "b"]]), r"shape \(1, 2\)"),
        (Path("absent.csv"), "absent.csv does not exist"),
    ],
)
def test_tables_that_hold_no_labels(source, message):
    with pytest.raises(SourceError, match=message):
        read_label_table(source)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x80" * 50, b"label,run\na,1\nb,2,3,4\n"])
def test_files_that_are_no_tables(tmp_path, content):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(SourceError, match=r"labels\.txt"):
        read_label_table(tmp_path / "labels.txt")
    with pytest.raises(SourceError, match="is a folder"):
        read_label_table(tmp_path)


def test_the_tutorials_file(shared_data):
    table = read_label_table(shared_data / "haxby-slice" / "labels.txt")
    assert len(table) == 1452
    assert list(table["run"].unique()) == [str(n) for n in range(12)]
    assert (table["label"] == "face").sum() == 108
