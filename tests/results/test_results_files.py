"""Result files: names, content against the decoder, replacement as a whole, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from daskdecode.errors import DaskDecodeError, DecodingError
from daskdecode.models.outcome import plain
from daskdecode.results.result import entity_value, entity_values, jsonable, write_results


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_full_disk_is_told_with_the_folder(make_decoder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_results(make_decoder(), tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_layout_and_values(make_decoder, tmp_path):
    decoder = make_decoder(subject="sub-02", session="a", task="object viewing")
    assert write_results(decoder, tmp_path / "out") == tmp_path / "out"
    func, stem = tmp_path / "out" / "sub-02" / "ses-a" / "func", "sub-02_ses-a_task-objectViewing"
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "daskdecode"
    for name in ("cat", "face"):
        for statistic, images in (("coef", decoder.coef_img_), ("stdcoef", decoder.std_coef_img_), ("pattern", decoder.pattern_img_)):
            image = nib.load(func / f"{stem}_desc-{name}_stat-{statistic}_statmap.nii.gz")
            np.testing.assert_array_equal(image.get_fdata(), images[name].get_fdata())
            np.testing.assert_array_equal(image.affine, images[name].affine)
    scores = pd.read_csv(func / f"{stem}_desc-decoding_scores.tsv", sep="\t", dtype={"test_runs": str})
    assert scores.loc[scores["class"] == "face", "score"].tolist() == pytest.approx(decoder.cv_scores_["face"], rel=1e-14)
    assert scores["test_runs"].tolist()[::2] == decoder.cv_metrics_["test_runs"].tolist()
    assert set(scores["C"]) == {1.0}
    confusion = pd.read_csv(func / f"{stem}_desc-decoding_confusion.tsv", sep="\t", index_col="true")
    np.testing.assert_array_equal(confusion, decoder.confusion_)
    predictions = pd.read_csv(func / f"{stem}_desc-decoding_predictions.tsv", sep="\t", dtype={"run": str})
    pd.testing.assert_frame_equal(predictions, decoder.cv_predictions_, check_dtype=False, rtol=1e-14)
    provenance = json.loads((func / f"{stem}_desc-decoding_provenance.json").read_text())
    assert provenance["estimator"] == "svc"
    assert set(provenance["files"]) | {f"{stem}_desc-decoding_provenance.json"} == {p.name for p in func.iterdir()}


def test_side_cars_describe_every_column(make_decoder, tmp_path):
    write_results(make_decoder(("cat", "face", "house")), tmp_path)
    tables = list(tmp_path.rglob("*.tsv"))
    assert len(tables) == 4
    for table in tables:
        described = json.loads(table.with_suffix(".json").read_text())
        assert set(pd.read_csv(table, sep="\t").columns) <= set(described), table.name


def test_same_decoder_same_bytes(make_decoder, tmp_path):
    for name in ("one", "two"):
        write_results(make_decoder(), tmp_path / name)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_earlier_analysis_is_replaced_as_a_whole(make_decoder, tmp_path):
    write_results(make_decoder(("cat", "face", "house")), tmp_path / "out")
    own = tmp_path / "out" / "sub-1" / "func" / "my_notes.txt"
    own.write_text("mine")
    write_results(make_decoder(subject="2"), tmp_path / "out")
    write_results(make_decoder(), tmp_path / "out")
    write_results(make_decoder(), tmp_path / "fresh")
    after = tree(tmp_path / "out" / "sub-1")
    assert after.pop("func/my_notes.txt") == b"mine"
    assert after == tree(tmp_path / "fresh" / "sub-1")
    assert (tmp_path / "out" / "sub-2").is_dir()


def test_failure_leaves_the_earlier_analysis(make_decoder, tmp_path):
    write_results(make_decoder(), tmp_path)
    before, broken = tree(tmp_path), make_decoder(("cat", "face", "house"))

    def full_disk(path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    broken.coef_img_["house"] = SimpleNamespace(to_filename=full_disk)
    with pytest.raises(OSError, match="No space"):
        write_results(broken, tmp_path)
    assert tree(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {"dataset_description.json", "sub-1"}


def test_untrusted_labels_stay_inside_the_folder(make_decoder, tmp_path):
    labels = ("../../etc", "a\tb\n", "A b")
    write_results(make_decoder(labels, subject="../up"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    func = tmp_path / "out" / "sub-up" / "func"
    assert {json.loads(p.read_text())["Class"] for p in func.glob("*_stat-coef_statmap.json")} == set(labels)
    confusion = pd.read_csv(func / "sub-up_desc-decoding_confusion.tsv", sep="\t", index_col="true")
    assert tuple(confusion.index) == labels


def test_bare_arrays_get_a_table_of_weights(make_decoder, tmp_path):
    decoder = make_decoder(grid=False, subject=None)
    write_results(decoder, tmp_path)
    weights = pd.read_csv(tmp_path / "desc-decoding_weights.tsv", sep="\t")
    np.testing.assert_allclose(weights["coef_face"], decoder.coef_[0], rtol=1e-14)
    np.testing.assert_allclose(weights["pattern_face"], decoder.pattern_[0], rtol=1e-14)
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_refusals(make_decoder, tmp_path):
    with pytest.raises(DecodingError, match="fit"):
        write_results(SimpleNamespace(), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(DaskDecodeError, match="is a file"):
        write_results(make_decoder(), tmp_path / "file")
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "dataset_description.json").write_text('{"Name": "my study", "BIDSVersion": "1.8.0"}')
    with pytest.raises(DaskDecodeError, match="derivatives"):
        write_results(make_decoder(), raw)
    assert [p.name for p in raw.iterdir()] == ["dataset_description.json"]
    assert not (tmp_path / "out").exists()


def test_entity_values():
    assert entity_value("scrambled pix!") == "scrambledPix"
    assert entity_value("señal-é") == "senalE"
    assert entity_values(["Face", "face", "fa ce", "%%", "??"]) == {
        "Face": "Face", "face": "face2", "fa ce": "faCe3", "%%": "unnamed", "??": "unnamed2",
    }  # fmt: skip
    assert len({v.lower() for v in entity_values(["a", "A", "a2", "a 2"]).values()}) == 4


def test_jsonable():
    value = {"a": np.float32(0.5), 1: np.array([1, 2]), "nan": float("nan"), "set": {"b", "a"}, "inf": [np.inf], "none": None}
    assert jsonable(value) == {"a": 0.5, "1": [1, 2], "nan": None, "set": ["a", "b"], "inf": [None], "none": None}
    # The record in memory keeps what JSON cannot say, such as C=inf; settings by name stay so, such as class_weight.
    assert plain({"C": [np.float64(np.inf)], "class_weight": {1: np.float32(2)}}) == {"C": [np.inf], "class_weight": {"1": 2.0}}
