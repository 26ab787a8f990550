"""Label tables in every shape that people keep them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from daskdecode.errors import SourceError
from daskdecode.sources.labels import read_label_table


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
        ("labels.txt", "labels\tchunks\nface\t0\ncat\t0\n\t1\n"),
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
        ["face", "cat", None],
        ("face", "cat", "n/a"),
        np.array(["face", "cat", "rest"]),
        pd.Series(["face", "cat", np.nan], index=[5, 6, 7]),
        pd.Series(["face", "cat", "rest"], dtype="category"),
        pd.DataFrame({"label": ["face", "cat", ""]}, index=[3, 1, 2]),
        pd.DataFrame({"labels": pd.array(["face", "cat", pd.NA], dtype="string")}),
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
