from __future__ import annotations

import json
from contextlib import nullcontext

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy.stats import binomtest, kstest
from sklearn.base import clone
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import KFold, LeaveOneGroupOut, StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

from daskdecode import Decoder, permutation_test, pool_subjects
from daskdecode.errors import DecodingError
from daskdecode.models.exchange import exchangeable, stretches
from daskdecode.models.null import summarise


def make(n_classes=2, n_runs=4, length=3, n_blocks=1, p=130, signal=0.0, noise_ar=0.0, seed=0, shuffle=True):
    """Runs of stimulation blocks in random order, with AR(1) noise."""
    rng = np.random.default_rng(seed)
    order = np.tile(np.repeat(np.arange(n_classes), n_blocks), (n_runs, 1))
    if shuffle:
        order = rng.permuted(order, axis=1)
    codes = np.repeat(order, length, axis=1)
    x = rng.standard_normal((*codes.shape, p))
    for t in range(1, codes.shape[1]):
        x[:, t] = noise_ar * x[:, t - 1] + np.sqrt(1 - noise_ar**2) * x[:, t]
    for c in range(n_classes):
        x[..., 10 * c : 10 * c + 10] += signal * (codes == c)[..., None]
    y = np.array([f"c{c}" for c in range(n_classes)])[codes.ravel()]
    return x.reshape(-1, p), y, np.repeat([f"{r + 1}" for r in range(n_runs)], codes.shape[1])


def ridge_test(x, y, groups, n_permutations=99, exchange="within_run", seed=0, blocks=None):
    """The permutation test of a ridge decoder without screening, in closed form."""
    decoder = Decoder("ridge_classifier", screening_percentile=None)
    return permutation_test(decoder, x, y, groups, n_permutations=n_permutations, exchange=exchange, random_state=seed, blocks=blocks)


FAST = {"param_grid": {"C": 1e-2}, "scoring": "accuracy"}
OPTIONS = {
    "gram": {"screening_percentile": None},
    "columns": {"screening_percentile": None},
    "screened": {"screening_percentile": 40},
}


# ------------------------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("route", OPTIONS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_each_permutation_is_a_whole_decode_of_permuted_labels(route, n_classes):
    x, y, groups = make(n_classes, n_runs=3, length=4, signal=0.7, p=20 if route == "columns" else 130, seed=1)
    decoder = Decoder(param_grid={"C": [1e-3, 1e-1]}, scoring="roc_auc", **OPTIONS[route])
    test = permutation_test(decoder, x, y, groups, n_permutations=2, random_state=5)
    units = exchangeable("within_run", y, groups, None)
    for i, got in enumerate([test.score, *test.null]):
        labels = y if i == 0 else y[units.draw(5, i - 1)]
        fitted = clone(decoder).fit(x, labels, groups)
        assert got == pytest.approx(np.mean(list(fitted.cv_scores_.values())), abs=1e-12)
    for name, scores in clone(decoder).fit(x, y, groups).cv_scores_.items():
        assert test.class_scores[name] == pytest.approx(np.mean(scores), abs=1e-12)


def test_p_values_are_those_of_the_formula():
    observed = np.array([0.7, 0.5, 0.6])
    null = np.random.default_rng(0).uniform(0.4, 0.75, (49, 3))
    null[3] = observed
    test = summarise(
        np.stack([observed, observed]),
        null,
        {"a": 0, "b": 1, "c": 2},
        scoring="s",
        estimator="e",
        exchange="within_run",
        random_state=0,
        n_arrangements=9,
    )
    assert test.pvalue == (1 + np.sum(null.mean(axis=1) >= 0.6 - 1e-12)) / 50
    for i, name in enumerate("abc"):
        assert test.class_pvalues[name] == (1 + np.sum(null[:, i] >= observed[i])) / 50
        assert test.class_pvalues_fwe[name] == (1 + np.sum(null.max(axis=1) >= observed[i])) / 50
        assert test.class_pvalues_fwe[name] >= test.class_pvalues[name]
    np.testing.assert_array_equal(test.class_nulls["b"], null[:, 1])
    assert "only 9 labellings differ" in str(test)


def test_ridge_in_closed_form_equals_scikit_learn():
    x, y, groups = make(signal=0.6, length=6, seed=3)
    test = ridge_test(x, y, groups, n_permutations=4, seed=2)
    scaled = np.concatenate([(part - part.mean(0)) / part.std(0, ddof=1) for part in np.split(x, 4)])
    units = exchangeable("within_run", y, groups, None)
    for i, got in enumerate([test.score, *test.null]):
        labels = np.where((y if i == 0 else y[units.draw(2, i - 1)]) == "c1", 1, -1)
        ridge = RidgeClassifierCV(alphas=np.geomspace(1e-3, 1e4, 8))
        expected = cross_val_score(ridge, scaled, labels, groups=groups, cv=LeaveOneGroupOut(), scoring="roc_auc")
        assert got == pytest.approx(expected.mean(), abs=1e-12)


def test_folds_that_look_at_labels_are_made_anew():
    x, y, _ = make(length=10, n_runs=2)
    decoder = Decoder(cv=4, standardize=None, screening_percentile=None, **FAST)
    test = permutation_test(decoder, x, y, n_permutations=3)
    units = exchangeable("within_run", y, None, None)
    for i, got in enumerate(test.null):
        assert got == pytest.approx(np.mean(clone(decoder).fit(x, y[units.draw(0, i)]).cv_scores_["c1"]), abs=1e-12)


# ------------------------------------------------------------------------------------------------------------- exchange


@pytest.mark.parametrize("exchange", ["within_run", "blocks"])
def test_labels_stay_in_their_run(exchange):
    _, y, groups = make(3, length=3, n_blocks=2)
    units = exchangeable(exchange, y, groups, None)
    moved = set()
    for i in range(30):
        order = units.draw(0, i)
        np.testing.assert_array_equal(np.sort(order), np.arange(y.size))
        np.testing.assert_array_equal(groups[order], groups)
        moved.add(tuple(y[order]))
    assert len(moved) > 10


def test_blocks_move_as_a_whole_and_only_among_their_equals():
    y = np.array(list("aabbbaabbaab") + list("abab"))
    groups = np.array(["1"] * 12 + ["2"] * 4)
    units = exchangeable("blocks", y, groups, None)
    seen = set()
    for i in range(400):
        labels = y[units.draw(0, i)]
        seen.add("".join(labels))
        assert "".join(labels[2:5]) == "bbb"  # the only block of three samples has nothing to change places with
        assert labels[11] == "b"
        assert all(labels[start] == labels[start + 1] for start in (0, 5, 7, 9))
    # Run 1: blocks of two are a, a, b, a, so 4 arrangements; run 2: single samples a, b, a, b, so 6.
    assert len(seen) == units.n_arrangements(y) == 4 * 6


def test_a_gap_in_time_ends_a_block():
    y, runs = np.array(list("aaaabb")), np.zeros(6)
    assert [b.tolist() for b in stretches(y, runs)] == [[0, 1, 2, 3], [4, 5]]
    times = np.array([0.0, 2, 10, 12, 20, 22])
    assert [b.tolist() for b in stretches(y, runs, times)] == [[0, 1], [2, 3], [4, 5]]


def test_a_step_is_measured_by_the_repetition_time_where_it_is_known():
    y, runs, times = np.array(list("aabb")), np.zeros(4), np.arange(4) * 8.0
    assert [b.tolist() for b in stretches(y, runs, times)] == [[0, 1], [2, 3]]
    assert [b.tolist() for b in stretches(y, runs, times, 2.0)] == [[0], [1], [2], [3]]
    assert [b.tolist() for b in stretches(y, runs, times, 8.0)] == [[0, 1], [2, 3]]


def test_blocks_are_found_where_the_rows_of_runs_are_mixed():
    y, runs, times = np.array(list("aaaabbbb")), np.tile(["1", "2"], 4), np.repeat(np.arange(4) * 2.0, 2)
    expected = [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert [b.tolist() for b in stretches(y, runs)] == expected
    assert [b.tolist() for b in stretches(y, runs, times)] == expected
    assert [b.tolist() for b in stretches(np.zeros(8), runs, np.repeat([0.0, 2, 20, 22], 2))] == expected


@pytest.mark.parametrize(
    ("pattern", "repetition", "dtype", "expected"),
    [
        ("aabbaabb", 8, float, 6**3),  # one volume every 8 s: blocks of two
        ("aabbaabb", 2, float, 70**3),  # the same where volumes last 2 s: each stands alone
        ("a...a...b...b...", 2, float, 6**3),
        ("aa..aa..bb..bb..", None, int, 6**3),
        ("aa..aa..bb..bb..", 2, int, 6**3),
    ],
)
def test_arrangements_of_a_dataset_with_gaps(pattern, repetition, dtype, expected):
    label = np.array(list(pattern))
    seconds = np.arange(label.size) * (2 if "." in pattern else 8)
    y, time = np.tile(label[label != "."], 3), np.tile(seconds[label != "."], 3).astype(dtype)
    run = np.repeat(["1", "2", "3"], y.size // 3)
    x = np.random.default_rng(0).standard_normal((y.size, 120))
    attrs = {} if repetition is None else {"repetition_time": repetition}
    ds = xr.Dataset({"bold": (("time", "voxel"), x)}, {"time": time, "run": ("time", run), "label": ("time", y)}, attrs)
    decoder = Decoder(screening_percentile=None, **FAST)
    mixed = ds.isel(time=np.argsort(time, kind="stable"))
    for data in (ds, mixed):
        assert permutation_test(decoder, data, exchange="blocks", n_permutations=1).n_arrangements == expected


def with_two_repetition_times(said):
    """Runs of volumes every 1 s and every 3 s; each condition stands twice in a row, with a rest of one volume between, or without."""
    pattern = {"1": "aa.aabb.bb", "2": "aaaabbbb", "3": "aa.aabb.bb"}
    step = {"1": 1.0, "2": 3.0, "3": 3.0}
    label = {run: np.array(list(labels)) for run, labels in pattern.items()}
    kept = {run: np.flatnonzero(labels != ".") for run, labels in label.items()}
    y = np.concatenate([label[run][rows] for run, rows in kept.items()])
    time = np.concatenate([rows * step[run] for run, rows in kept.items()])
    run = np.repeat(list(pattern), [rows.size for rows in kept.values()])
    x = np.random.default_rng(0).standard_normal((y.size, 120))
    attrs = {"all": {"repetition_time": 1.0, "repetition_times": step}, "renamed": {"repetition_times": {"a": 1.0, "b": 3.0}}, "none": {}}
    return xr.Dataset({"bold": (("time", "voxel"), x)}, {"time": time, "run": ("time", run), "label": ("time", y)}, attrs[said])


@pytest.mark.parametrize("said", ["all", "renamed", "none"])
def test_gaps_are_measured_by_each_runs_own_repetition_time(said):
    ds = with_two_repetition_times(said)
    # Runs 1 and 3: four blocks of two. Run 2 has no gap: two blocks of four.
    decoder = Decoder(screening_percentile=None, **FAST)
    assert permutation_test(decoder, ds, exchange="blocks", n_permutations=1).n_arrangements == 6 * 2 * 6
    assert (
        permutation_test(
            decoder, ds, np.asarray(ds["label"]), np.repeat(list("xyz"), 8), exchange="blocks", n_permutations=1
        ).n_arrangements
        == 72
    )
    # Without the first run, as samples that are left out.
    left = permutation_test(decoder, ds, exchange="blocks", n_permutations=1, sample_mask=np.asarray(ds["run"] != "1"))
    assert left.n_arrangements == 2 * 6


def test_pooled_subjects_know_the_repetition_times_of_all_runs():
    grid = {"affine": np.eye(4).tolist(), "shape": [120, 1, 1]}
    parts = [with_two_repetition_times("all").assign_coords(voxel=np.arange(120)) for _ in range(2)]
    parts[0].attrs |= grid | {"subject": "01"}
    parts[1].attrs = grid | {"subject": "02", "repetition_time": 2.0}
    pooled = pool_subjects(parts)
    expected = {"sub-01/1": 1.0, "sub-01/2": 3.0, "sub-01/3": 3.0, "sub-02/1": 2.0, "sub-02/2": 2.0, "sub-02/3": 2.0}
    assert pooled.attrs["repetition_times"] == expected
    decoder = Decoder(screening_percentile=None, **FAST)
    # Measured by 2 s, steps of 2 s and 3 s in the second subject are no gaps, and those of 6 s are.
    assert permutation_test(decoder, pooled, exchange="blocks", n_permutations=1).n_arrangements == (6 * 2 * 6) * (2 * 2 * 6)


def test_a_dataset_tells_its_gaps():
    x, _, _ = make(n_runs=1, length=6, n_blocks=3)
    y, groups = np.tile(np.repeat(["a", "b", "a"], 4), 3), np.repeat(["1", "2", "3"], 12)
    time = np.tile(np.concatenate([np.arange(2) * 2 + 10 * k for k in range(6)]), 3).astype(float)
    ds = xr.Dataset(
        {"bold": (("time", "voxel"), da.from_array(x))},
        {"run": ("time", groups), "label": ("time", y), "time": ("time", time), "voxel": np.arange(130)},
    )
    decoder = Decoder(screening_percentile=None, **FAST)
    assert permutation_test(decoder, ds["bold"], n_permutations=1, exchange="blocks").n_arrangements == 15**3
    # Without times the four samples of a class are one block: 3 arrangements a run.
    assert permutation_test(decoder, x, y, groups, n_permutations=1, exchange="blocks").n_arrangements == 3**3


def test_blocks_can_be_given():
    y, groups = np.array(list("aabbaabb")), np.repeat(["1", "2"], 4)
    blocks = np.array([5, 7, 5, 7, 9, 3, 3, 9])
    with pytest.raises(DecodingError, match="Block 5 has samples of several labels"):
        exchangeable("blocks", y, groups, None, blocks)
    y = y[[0, 2, 1, 3, 4, 6, 7, 5]]
    with pytest.raises(DecodingError, match="Block 9 has samples of several runs"):
        exchangeable("blocks", y, np.repeat(["1", "2"], [5, 3]), None, blocks)
    units = exchangeable("blocks", y, groups, None, blocks)
    assert {"".join(y[units.draw(0, i)]) for i in range(50)} == {"abababba", "babaabba", "ababbaab", "bababaab"}


# -------------------------------------------------------------------------------------------- seeds, workers and resuming


def test_the_null_depends_neither_on_workers_nor_on_how_many_permutations_are_asked_for():
    x, y, groups = make(3, length=4, seed=2)
    decoder = Decoder(screening_percentile=None, **FAST)
    reference = permutation_test(decoder, x, y, groups, n_permutations=8)
    for workers, n in ((1, 8), (3, 5)):
        with dask.config.set(scheduler="threads", num_workers=workers):
            got = permutation_test(decoder, da.from_array(x, chunks=(7, 33)), y, groups, n_permutations=n)
        np.testing.assert_allclose(got.null, reference.null[:n], atol=1e-12)
    assert not np.allclose(permutation_test(decoder, x, y, groups, n_permutations=8, random_state=1).null, reference.null)


@pytest.mark.parametrize("route", ["gram", "screened"])
def test_a_killed_test_goes_on_where_it_was(route, tmp_path, monkeypatch):
    x, y, groups = make(length=4)
    decoder = Decoder(**OPTIONS[route], **FAST)
    monkeypatch.setattr("daskdecode.models.labellings.Labellings._batch", lambda _: 3)
    whole = permutation_test(decoder, x, y, groups, n_permutations=8)
    path = tmp_path / "null.npz"

    def killed(done, total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        permutation_test(decoder, x, y, groups, n_permutations=8, path=path, progress=killed)
    calls = []
    resumed = permutation_test(decoder, x, y, groups, n_permutations=8, path=path, progress=lambda *done: calls.append(done))
    assert calls == [(8, 8)]
    np.testing.assert_array_equal(resumed.null, whole.null)
    assert permutation_test(decoder, x, y, groups, n_permutations=5, path=path).null.tolist() == whole.null[:5].tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["null.npz"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": 1}, "the data differ"),
        ({"y": 1}, "the labels differ"),
        ({"groups": 1}, "the folds differ"),
        ({"decoder": {"param_grid": {"C": 1e-1}}}, r"param_grid was \{'C': 0.01\} and is \{'C': 0.1\}"),
        ({"decoder": {"standardize": None}}, "standardize was 'zscore_run' and is None"),
        ({"random_state": 1}, "random_state was 0 and is 1"),
        ({"exchange": "blocks"}, "the exchangeable differ"),
    ],
)
def test_a_file_of_another_test_is_refused(change, said, tmp_path):
    x, y, groups = make(length=2, n_blocks=3, shuffle=False)
    y = np.tile(np.repeat(["c0", "c1", "c0", "c1"], 3), 4)
    decoder = Decoder(screening_percentile=None, **FAST)
    path = tmp_path / "null.npz"
    permutation_test(decoder, x, y, groups, n_permutations=2, path=path)
    permutation_test(
        clone(decoder).set_params(memory_budget="2GB"), da.from_array(x, chunks=(5, 40)), y, groups, n_permutations=2, path=path
    )
    if "x" in change:
        x = x.copy()
        x[[0, 1], 0] = x[[1, 0], 0]
    if "y" in change:
        y = y.copy()
        y[[2, 3]] = y[[3, 2]]
    if "groups" in change:
        groups = groups.copy()
        groups[[11, 12]] = groups[[12, 11]]
    decoder.set_params(**change.get("decoder", {}))
    options = {k: v for k, v in change.items() if k in ("random_state", "exchange")}
    before = path.read_bytes()
    with pytest.raises(DecodingError, match=f"holds another permutation test: .*{said}"):
        permutation_test(decoder, x, y, groups, n_permutations=2, path=path, **options)
    assert path.read_bytes() == before


def test_a_file_that_is_something_else_is_left_alone(tmp_path):
    x, y, groups = make()
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(DecodingError, match="damaged, or not the file of a permutation test"):
        permutation_test(Decoder(**FAST), x, y, groups, path=path)
    assert path.read_text() == "mine"


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exchange": "block"}, "Did you mean 'blocks'"),
        ({"n_permutations": 0}, "n_permutations=0 must be a whole number of at least 1"),
        ({"n_permutations": 10.0}, "n_permutations=10.0"),
        ({"random_state": -1}, "random_state=-1"),
        ({"blocks": np.zeros(24)}, "pass exchange='blocks' with it"),
        ({"blocks": np.zeros(23), "exchange": "blocks"}, r"blocks has shape \(23,\)"),
        ({"path": "no/such/folder/null.npz"}, "existing folder"),
        ({"y": np.repeat("a", 24)}, "All 24 samples have the label a"),
        ({"groups": None}, "needs the run of each sample"),
    ],
)
def test_what_can_be_mended_is_said_before_any_work(options, message):
    x, y, groups = make()

    def never(block):
        raise AssertionError("data were read")

    lazy = da.from_array(x, chunks=(6, 130)).map_blocks(never, dtype=float, meta=np.empty((0, 0)))
    arguments = {"y": y, "groups": groups} | options
    with pytest.raises(DecodingError, match=message):
        permutation_test(Decoder(**FAST), lazy, arguments.pop("y"), arguments.pop("groups"), **arguments)


def test_nothing_to_exchange_is_said():
    x, _, _ = make()
    y, groups = np.tile(np.repeat(["a", "b"], 3), 4), np.repeat(np.arange(8), 3)
    with pytest.raises(DecodingError, match="every run has a single label"):
        permutation_test(Decoder(screening_percentile=None, **FAST), x, y, groups)
    y = np.tile(list("aaaabb"), 4)
    with pytest.raises(DecodingError, match=r"no run has two blocks of the same length .* a x 4, b x 2"):
        permutation_test(Decoder(screening_percentile=None, **FAST), x, y, np.repeat(np.arange(4), 6), exchange="blocks")


def test_a_score_that_is_never_defined_is_no_small_p_value():
    x, y, groups = make(length=6, n_runs=2)
    pairs = [(np.delete(np.arange(24), i), [i]) for i in range(24)]
    with pytest.raises(DecodingError, match="not defined in any fold"):
        permutation_test(Decoder(cv=pairs, param_grid={"C": 1}, standardize=None, screening_percentile=None), x, y, groups)


def test_the_result_can_be_written_and_read():
    x, y, groups = make(3, length=4, signal=1.5)
    test = permutation_test(Decoder(screening_percentile=None, **FAST), x, y, groups, n_permutations=9)
    back = json.loads(json.dumps(test.to_dict()))
    assert back["pvalue"] == test.pvalue == 0.1
    assert back["n_permutations"] == len(back["null"]) == 9
    assert set(back["class_pvalues_fwe"]) == {"c0", "c1", "c2"}
    for word in ("accuracy", "p = 0.1", "9 permutations of labels within runs", "c2"):
        assert word in str(test)


# ------------------------------------------------------------------------------------------------------------- calibration


def test_p_values_of_noise_are_uniform():
    values = [ridge_test(*make(length=1, n_blocks=5, p=60, seed=seed), seed=seed).pvalue for seed in range(100)]
    assert binomtest(sum(p <= 0.05 for p in values), 100, 0.05).pvalue > 0.01
    assert kstest(values, "uniform").pvalue > 0.01


def test_autocorrelated_noise_needs_blocks_to_be_exchanged():
    rejected = {"blocks": 0, "within_run": 0}
    for seed in range(60):
        data = make(n_runs=3, length=8, n_blocks=2, p=40, noise_ar=0.9, seed=seed)
        for exchange in rejected:
            blocks = np.arange(data[1].size) // 8 if exchange == "blocks" else None
            rejected[exchange] += ridge_test(*data, exchange=exchange, seed=seed, blocks=blocks).pvalue <= 0.05
    assert binomtest(rejected["blocks"], 60, 0.05).pvalue > 0.01
    assert binomtest(rejected["within_run"], 60, 0.05).pvalue < 0.001


@pytest.mark.parametrize("exchange", ["within_run", "blocks"])
def test_a_planted_signal_is_found(exchange):
    data = make(n_runs=4, length=4, n_blocks=3, signal=1.0, noise_ar=0.5)
    blocks = np.arange(data[1].size) // 4 if exchange == "blocks" else None
    assert ridge_test(*data, exchange=exchange, blocks=blocks).pvalue == 0.01
    decoder = Decoder(screening_percentile=None, **FAST)
    assert permutation_test(decoder, *data, exchange=exchange, blocks=blocks, n_permutations=19).pvalue == 0.05


@pytest.mark.slow
def test_p_values_of_noise_are_uniform_when_screening_is_done_again():
    """Screening once, on the true labels, would let p values of noise pile up at the small end."""
    values = []
    for seed in range(60):
        data = make(length=1, n_blocks=5, p=150, seed=seed)
        decoder = Decoder(screening_percentile=10, **FAST)
        values.append(permutation_test(decoder, *data, n_permutations=39, random_state=seed).pvalue)
    assert binomtest(sum(p <= 0.05 for p in values), 60, 0.05).pvalue > 0.01


def test_what_cannot_be_tested_is_refused_before_any_work():
    x, y, groups = np.zeros((12, 3)), np.tile(["a", "b"], 6), np.repeat(np.arange(3), 4)
    with pytest.raises(DecodingError, match=r"takes a daskdecode\.Decoder or DecoderRegressor; found LinearSVC"):
        permutation_test(LinearSVC(), x, y, groups)
    with pytest.raises(DecodingError, match="give it a random_state"):
        permutation_test(Decoder(cv=StratifiedKFold(3, shuffle=True)), x, y, groups)


def test_folds_that_permuted_labels_empty_are_named():
    y = np.array(["b" if i in (3, 20) else "a" for i in range(32)])
    x = np.random.default_rng(0).standard_normal((32, 6))
    decoder = Decoder(cv=KFold(4), param_grid={"C": 1}, standardize=None, scoring="accuracy")
    with pytest.raises(DecodingError, match="With labels in another order, the folds of cv=KFold"):
        permutation_test(decoder, x, y, n_permutations=300)


def test_the_score_is_the_decoders_own_where_candidates_tie():
    """Few samples, three classes: ranks tie often, and rounding must not choose between candidates."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, y, groups = rng.standard_normal((36, 40)), np.tile(["a", "b", "c"], 12), np.repeat(np.arange(4), 9)
        decoder = Decoder(param_grid={"C": [0.01, 1]}, screening_percentile=None)
        test = permutation_test(decoder, x, y, groups, n_permutations=1)
        assert test.score == pytest.approx(np.mean(list(decoder.fit(x, y, groups).cv_scores_.values())), abs=1e-12)


# ------------------------------------------------------------------------------------------------------- whose null it is


def test_a_null_is_not_taken_for_classes_in_another_order(tmp_path):
    """Numbers are in order 2, 3, 10, and text in order 10, 2, 3: scores by class would be those of others."""
    x, codes, groups = make(3, n_runs=3, length=4, signal=0.7, p=20, seed=1)
    y = np.array([2, 3, 10])[np.unique(codes, return_inverse=True)[1]]
    decoder = Decoder("ridge_classifier", screening_percentile=None)
    first = permutation_test(decoder, x, y, groups, n_permutations=3, path=tmp_path / "null.npz")
    again = permutation_test(decoder, x, y.astype(np.uint8), groups, n_permutations=3, path=tmp_path / "null.npz")
    assert again.to_dict() == first.to_dict()
    with pytest.raises(DecodingError, match="the labels differ"):
        permutation_test(decoder, x, y.astype(str), groups, n_permutations=3, path=tmp_path / "null.npz")


def test_a_null_is_not_taken_for_folds_that_permuted_labels_do_not_change(tmp_path):
    x, y, groups = make(2, n_runs=3, length=4, signal=0.7, p=20, seed=1)
    folds = list(StratifiedKFold(2).split(x, y))
    nulls = {}
    for name, cv in {"by labels": 2, "listed": folds}.items():
        decoder = Decoder("ridge_classifier", screening_percentile=None, cv=cv)
        nulls[name] = permutation_test(decoder, x, y, groups, n_permutations=9).null
        with pytest.raises(DecodingError, match="permuted folds") if name == "listed" else nullcontext():
            permutation_test(decoder, x, y, groups, n_permutations=9, path=tmp_path / "null.npz")
    assert not np.allclose(nulls["by labels"], nulls["listed"])


def test_a_null_is_taken_however_leaving_a_run_out_is_asked_for(tmp_path):
    x, y, groups = make(2, n_runs=3, length=4, signal=0.7, p=20, seed=1)
    for cv in ("run", LeaveOneGroupOut(), list(LeaveOneGroupOut().split(x, y, groups))):
        decoder = Decoder("ridge_classifier", screening_percentile=None, cv=cv)
        permutation_test(decoder, x, y, groups, n_permutations=3, path=tmp_path / "null.npz")
