"""The report: self-contained, escaped, deterministic, and whole for odd volumes."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib._pylab_helpers
import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from daskdecode.errors import DaskDecodeError, DecodingError
from daskdecode.results.maps import choose_planes, choose_slices, colour_limit, draw_map, load_background
from daskdecode.results.plots import fold_chart, score_axis
from daskdecode.results.report import write_report
from daskdecode.results.scores import fold_scores, score_table

VOID = {"meta", "img", "br", "line", "circle", "link", "hr", "input"}


class Page(HTMLParser):
    """Collect tags and what they refer to; complain about tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.references, self.handlers, self.text = [], [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in {"src", "href", "action", "data"}]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.mark.parametrize("classes", [("cat", "face"), ("cat", "face", "house")])
def test_self_contained_and_complete(make_decoder, tmp_path, classes):
    decoder = make_decoder(classes)
    path = write_report(decoder, tmp_path / "new" / "report.html", background=decoder.background, notes=["Planted in vt."])
    page = read(path)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(r.startswith("data:image/png;base64,") for r in page.references)
    assert len(page.references) == (2 if len(classes) == 2 else 6)
    for png in page.references:
        pixels = imread(io.BytesIO(base64.b64decode(png.split(",")[1])))[..., :3]
        assert (pixels.max(2) - pixels.min(2) > 0.3).mean() > 0.01  # there is colour: the map was drawn
    assert f"{np.mean([np.mean(decoder.cv_scores_[c]) for c in classes]):.3f}" in page.text
    assert f"{decoder.cv_metrics_['accuracy'].mean():.3f}" in page.text
    assert "Planted in vt." in page.text
    assert "optimistic" not in page.text
    assert page.tags.count("circle") == (6 if len(classes) == 2 else 6 + 18)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_untrusted_text_is_escaped(make_decoder, tmp_path):
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    decoder = make_decoder(("cat", "face", evil), source=evil, subject=evil, warnings=[evil], nested={evil: [evil]})
    decoder.cv_metrics_["test_runs"] = evil
    decoder.cv_params_ = {c: {evil: [1] * 6} for c in decoder.classes_}
    page = read(write_report(decoder, tmp_path / "report.html", background=decoder.background, title=evil, notes=[evil]))
    assert "script" not in page.tags
    assert not page.handlers
    assert page.tags.count("img") == 6
    assert evil in page.text


def test_optimistic_scores_and_warnings_are_said_first(make_decoder, tmp_path):
    text = read(write_report(make_decoder(optimistic=True, warnings=["3 voxels are constant."]), tmp_path / "r.html")).text
    assert text.index("These scores are optimistic") < text.index("3 voxels are constant.") < text.index("Scores of each fold")


def test_same_decoder_same_bytes_and_no_global_state(make_decoder, tmp_path):
    before = dict(mpl.rcParams)
    one, two = (write_report(make_decoder(), tmp_path / f"{n}.html", background=make_decoder().background) for n in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert dict(mpl.rcParams) == before
    assert not matplotlib._pylab_helpers.Gcf.figs


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("shape", [(7, 8, 9), (7, 8, 1), (1, 8, 9), (7, 1, 9), (1, 1, 1), (1, 1, 9)])
def test_odd_volumes(make_decoder, shape, zero):
    rng = np.random.default_rng(0)
    values = np.zeros(shape) if zero else rng.normal(size=shape)
    pixels = imread(io.BytesIO(draw_map(nib.Nifti1Image(values, np.diag([-3, 3, 4, 1])), None)))[..., :3]
    assert ((pixels.max(2) - pixels.min(2)) > 0.3).any() != zero


def test_map_without_grid_or_background(make_decoder, tmp_path):
    assert "no voxel grid" in read(write_report(make_decoder(grid=False), tmp_path / "a.html")).text
    write_report(make_decoder(zero=True), tmp_path / "b.html")


def test_planes_show_the_map():
    values = np.zeros((7, 8, 9))
    values[2, 5, 6] = -3
    assert choose_planes(values) == [(0, 2), (1, 5), (2, 6)]
    assert choose_slices(values, values) == [(2, 6)]
    assert choose_planes(np.zeros((7, 8, 9))) == [(0, 3), (1, 4), (2, 4)]
    assert choose_planes(np.zeros((7, 8, 1))) == [(2, 0)]
    dense = choose_slices(np.ones((7, 8, 40)), values)
    assert len(dense) == 6
    assert dense[0][1] < 3
    assert dense[-1][1] > 36


def test_left_is_left_and_up_is_up():
    """One hot voxel at the right front of the brain, stored right to left: it must be drawn at the right, front up."""
    values = np.zeros((7, 8, 1))
    values[0, 7, 0] = 1  # x runs from right to left in this file, y from back to front
    pixels = imread(
        io.BytesIO(draw_map(nib.Nifti1Image(values, np.diag([-3, 3, 4, 1])), nib.Nifti1Image(np.ones((7, 8, 1)), np.diag([-3, 3, 4, 1]))))
    )
    pixels = pixels[:, : int(0.9 * pixels.shape[1]), :3]  # without the colour bar
    rows, columns = np.nonzero(pixels.max(2) - pixels.min(2) > 0.2)
    grey_rows, grey_columns = np.nonzero(pixels.min(2) > 0.3)
    assert columns.min() > np.median(grey_columns)
    assert rows.max() < np.median(grey_rows)


def test_background_on_another_grid_is_resampled():
    like = nib.Nifti1Image(np.zeros((7, 8, 9)), np.diag([-3.0, 3, 4, 1]))
    fine = nib.Nifti1Image(np.ones((14, 16, 18), dtype=np.float32), np.diag([-1.5, 1.5, 2, 1]))
    assert load_background(fine, like).shape == (7, 8, 9)
    assert load_background(fine, like).max() == pytest.approx(1)
    moving = nib.Nifti1Image(np.stack([np.zeros((7, 8, 9)), np.full((7, 8, 9), 2.0)], 3), like.affine)
    np.testing.assert_allclose(load_background(moving, like), 1)


def test_colour_limit_ignores_outliers():
    values = np.concatenate([np.ones(999), [1000.0, np.nan]])
    assert colour_limit(values) == pytest.approx(1)
    assert colour_limit(np.zeros(5)) == 0


def test_score_axis():
    assert score_axis([0.4, 0.9]) == (0, 1, [0, 0.25, 0.5, 0.75, 1])
    low, high, ticks = score_axis([-0.3, 0.8])
    assert low <= -0.3
    assert high >= 0.8
    assert ticks[0] == low
    assert ticks[-1] == pytest.approx(high)
    assert score_axis([float("nan")])[:2] == (0, 1)
    low, high, _ = score_axis([-5.0, -5.0])
    assert low <= -5 <= high
    assert high > low


def test_fold_chart_places_scores(make_decoder):
    decoder = make_decoder()
    decoder.cv_scores_ = {c: [0.0, 1.0, 0.5, float("nan"), 0.25, 0.75] for c in decoder.classes_}
    chart = fold_chart(fold_scores(score_table(decoder)), "ROC AUC")
    heights = [(chart.bottom - d.y) / (chart.bottom - chart.top) for d in chart.dots]
    assert heights == pytest.approx([0, 1, 0.5, 0.25, 0.75])
    assert chart.chance.position == pytest.approx((chart.top + chart.bottom) / 2)
    assert abs(chart.mean.y_text - chart.chance.y_text) >= 28  # mean and chance coincide; their texts do not


def test_many_folds_and_no_chance(make_decoder, tmp_path):
    decoder = make_decoder(n_runs=60, scoring="neg_log_loss")
    decoder.cv_scores_ = {c: list(-np.linspace(0.1, 3, 60)) for c in decoder.classes_}
    text = read(write_report(decoder, tmp_path / "r.html")).text
    assert "no chance level" in text
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", text.lower())


def test_refusals(make_decoder, tmp_path):
    with pytest.raises(DaskDecodeError, match="is a folder"):
        write_report(make_decoder(), tmp_path)
    with pytest.raises(DecodingError, match="fit"):
        write_report(SimpleNamespace(), tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []
