from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nilearn.signal import clean

import daskdecode as dd
from daskdecode import schema
from daskdecode.data.preprocess import standardize_samples
from daskdecode.errors import DecodingError, SourceError

fixtures_are_pure = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)


def confounds_for(ds, n=4, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).normal(3, 2, (ds.sizes["time"], n))


def nilearn_by_run(ds, confounds=None, **options: Any) -> np.ndarray:
    """``nilearn.signal.clean`` with ``runs=``; it puts runs in alphabetical order, which is undone here."""
    runs = schema.run_ids(ds)
    cleaned = clean(ds.bold.values, runs=runs, confounds=confounds, **options)
    order = np.concatenate([np.flatnonzero(runs == run) for run in np.unique(runs)])
    return cleaned[np.argsort(order)]


OPERATIONS = {
    "zscore_run": lambda ds: dd.standardize(ds, "zscore_run"),
    "zscore_sample": lambda ds: dd.standardize(ds, "zscore_sample"),
    "psc": lambda ds: dd.standardize(ds, "psc"),
    "detrend": dd.detrend,
    "regress_out": lambda ds: dd.regress_out(ds, confounds_for(ds)),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@st.composite
def chunkings(draw, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Any way of cutting an array into blocks."""
    chunks = []
    for size in shape:
        cuts = draw(st.sets(st.integers(1, size - 1), max_size=6)) if size > 1 else set()
        edges = [0, *sorted(cuts), size]
        chunks.append(tuple(int(n) for n in np.diff(edges)))
    return tuple(chunks)


# -- properties --------------------------------------------------------------------------------------------------------------------------


@every_operation
@given(data=st.data())
@fixtures_are_pure
def test_the_same_bits_however_the_data_are_chunked(subject, operation, data):
    whole = subject(chunks=-1)
    cut = whole.assign(bold=whole.bold.copy(data=da.from_array(whole.bold.values, chunks=data.draw(chunkings(whole.bold.shape)))))
    np.testing.assert_array_equal(operation(cut).bold.values, operation(whole).bold.values)


@every_operation
@given(seed=st.integers(0, 10**6), keep=st.integers(1, 61))
@fixtures_are_pure
def test_the_same_bits_in_any_order_and_subset_of_voxels(subject, operation, seed, keep):
    ds = subject()
    some = np.random.default_rng(seed).permutation(ds.sizes["voxel"])[:keep]
    np.testing.assert_array_equal(operation(ds.isel(voxel=some)).bold.values, operation(ds).bold.values[:, some])


@every_operation
def test_building_computes_nothing(subject, nothing_computes, operation):
    ds = subject()
    with nothing_computes:
        got = operation(ds)
    assert isinstance(got.bold.data, da.Array)
    assert got.bold.shape == ds.bold.shape
    assert set(got.coords) == set(ds.coords)


@every_operation
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept_and_announced(subject, operation, dtype):
    got = operation(subject(dtype=dtype))
    assert got.bold.dtype == dtype
    assert got.bold.compute().dtype == dtype


@pytest.mark.parametrize(("stored", "becomes"), [("int16", "float32"), ("uint8", "float32"), ("uint32", "float64"), ("int64", "float64")])
def test_integers_become_a_float_that_holds_them(subject, stored, becomes):
    """And so the numbers of nilearn, which takes float32 for 32 bits too, where these are large."""
    x = subject().bold.values.astype(stored) + np.array(4e9 if stored == "uint32" else 0).astype(stored)
    got = standardize_samples(da.from_array(x, chunks=(9, 7)), None, "zscore_sample")
    assert got.dtype == becomes
    np.testing.assert_array_equal(got.compute(), clean(x.astype(becomes), detrend=False, standardize="zscore_sample"))


@pytest.mark.parametrize(("stored", "becomes"), [("float16", "float32"), (">f4", "float32"), (">f8", "float64"), ("longdouble", "float64")])
def test_floats_of_other_kinds_become_those_that_compiled_code_takes(subject, stored, becomes):
    x = subject(dtype="float64").bold.values.astype(stored)
    got = standardize_samples(da.from_array(x, chunks=(9, 7)), None, None)
    assert got.dtype == becomes
    assert got.dtype.isnative
    np.testing.assert_array_equal(got.compute(), x.astype(becomes))


@every_operation
def test_the_input_is_left_alone(subject, operation):
    ds = subject()
    before = ds.bold.values.copy()
    operation(ds.load()).bold.compute()
    np.testing.assert_array_equal(ds.bold.values, before)


@pytest.mark.parametrize("operation", [OPERATIONS[name] for name in ("zscore_run", "detrend", "regress_out")])
def test_runs_do_not_touch_each_other(subject, operation):
    ds = subject()
    changed = ds.bold.values.copy()
    changed[:11] *= np.random.default_rng(2).random((11, 61), dtype="float32")
    got = operation(ds.assign(bold=ds.bold.copy(data=da.from_array(changed, chunks=(8, 20))))).bold.values
    expected = operation(ds).bold.values
    np.testing.assert_array_equal(got[11:], expected[11:])
    assert not np.isclose(got[:11], expected[:11]).any()


# -- equality with nilearn ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("how", ["zscore_sample", "psc"])
def test_scaling_over_all_volumes_is_nilearns_to_the_bit(subject, how, dtype):
    ds = subject(dtype=dtype)
    expected = clean(ds.bold.values, detrend=False, standardize=how)
    np.testing.assert_array_equal(dd.standardize(ds, how).bold.values, expected)
    np.testing.assert_array_equal(standardize_samples(ds.bold.data, None, how).compute(), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scaling_within_runs_is_nilearns_to_the_bit(subject, dtype):
    ds = subject(dtype=dtype)
    expected = nilearn_by_run(ds, detrend=False, standardize="zscore_sample")
    np.testing.assert_array_equal(dd.standardize(ds, "zscore_run").bold.values, expected)
    np.testing.assert_array_equal(standardize_samples(ds.bold.data, ds.run.values, "zscore_run").compute(), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)])
def test_detrend_is_nilearns(subject, dtype, tolerance):
    ds = subject(dtype=dtype)
    expected = nilearn_by_run(ds, detrend=True, standardize=None)
    # relative to the signal: nilearn subtracts in float32, where the brightness of about 1000 costs the last digits
    np.testing.assert_allclose(dd.detrend(ds).bold.values, expected, rtol=0, atol=tolerance * np.abs(ds.bold.values).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("as_frame", [False, True])
def test_regress_out_is_nilearns(subject, dtype, tolerance, as_frame):
    ds = subject(dtype=dtype)
    confounds = confounds_for(ds)
    expected = nilearn_by_run(ds, confounds, detrend=False, standardize=None)
    table = pd.DataFrame(confounds, columns=["a", "b", "c", "d"], index=range(5, 5 + len(confounds))) if as_frame else confounds
    np.testing.assert_allclose(dd.regress_out(ds, table).bold.values, expected, rtol=tolerance)


def test_detrend_then_confounds_with_a_line_is_nilearns_joint_cleaning(subject):
    ds = subject(dtype="float64")
    confounds = confounds_for(ds)
    expected = nilearn_by_run(ds, confounds, detrend=True, standardize=None)
    got = dd.regress_out(dd.detrend(ds), np.column_stack([confounds, ds.time.values]))
    np.testing.assert_allclose(got.bold.values, expected, rtol=0, atol=1e-10)


def test_sessions_keep_runs_of_one_name_apart(subject):
    ds = subject(lengths=(10, 12), session=True)
    ds = ds.assign_coords(run=("time", np.full(22, "01")), session=("time", np.repeat(["a", "b"], [10, 12])))
    got = dd.standardize(ds, "zscore_run").bold.values
    np.testing.assert_array_equal(got[:10], clean(ds.bold.values[:10], detrend=False, standardize="zscore_sample"))


def test_interleaved_runs_come_back_in_the_order_of_the_samples(subject):
    ds = subject()
    mixed = np.random.default_rng(3).permutation(ds.sizes["time"])
    runs = ds.run.values[mixed]
    x = ds.bold.values[mixed]
    got = standardize_samples(da.from_array(x, chunks=(5, 9)), runs, "zscore_run").compute()
    for run in np.unique(runs):
        np.testing.assert_array_equal(got[runs == run], clean(x[runs == run], detrend=False, standardize="zscore_sample"))


# -- what the moments are ----------------------------------------------------------------------------------------------------------------


def test_regress_out_leaves_nothing_of_the_confounds_and_keeps_every_mean(subject):
    ds = subject(dtype="float64")
    confounds = confounds_for(ds)
    got = dd.regress_out(ds, confounds).bold
    for run in np.unique(ds.run):
        rows = ds.run.values == run
        np.testing.assert_allclose(got.values[rows].mean(0), ds.bold.values[rows].mean(0), rtol=1e-12)
        centred = confounds[rows] - confounds[rows].mean(0)
        np.testing.assert_allclose(centred.T @ got.values[rows], 0, atol=1e-8)


def test_constant_and_redundant_confounds_do_no_harm(subject):
    ds = subject(dtype="float64")
    confounds = confounds_for(ds, n=3)
    more = np.column_stack([np.ones(len(confounds)), confounds, confounds[:, 0] + confounds[:, 1]])
    np.testing.assert_allclose(dd.regress_out(ds, more).bold.values, dd.regress_out(ds, confounds).bold.values, rtol=1e-12)


def test_one_confound_may_be_a_vector(subject):
    ds = subject()
    one = confounds_for(ds, n=1)
    np.testing.assert_array_equal(dd.regress_out(ds, one[:, 0]).bold.values, dd.regress_out(ds, one).bold.values)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, 2e7])
@every_operation
def test_constant_voxels_stay_finite_and_small(subject, operation, value):
    ds = subject()
    x = ds.bold.values.copy()
    x[:, 5] = np.float32(value)
    got = operation(ds.assign(bold=ds.bold.copy(data=da.from_array(x, chunks=(11, 6))))).bold.values
    assert np.isfinite(got).all()
    scaled = operation not in (OPERATIONS["regress_out"], OPERATIONS["detrend"])
    np.testing.assert_allclose(
        got[:, 5], value if operation is OPERATIONS["regress_out"] else 0, rtol=1e-6, atol=0 if scaled else 1e-6 * value
    )


def test_standardize_samples_gives_one_block_of_time_and_keeps_voxel_chunks(subject):
    x = subject().bold.data
    runs = subject().run.values
    for how in ("zscore_run", "zscore_sample", "psc", None):
        got = standardize_samples(x, runs, how)
        assert got.chunks == ((34,), x.chunks[1])
    np.testing.assert_array_equal(standardize_samples(x, None, None).compute(), x.compute())


def test_a_run_is_a_task_not_the_whole_recording(subject):
    assert dd.standardize(subject(), "zscore_run").bold.data.chunks[0] == (11, 14, 9)
    assert dd.detrend(subject()).bold.data.chunks[0] == (11, 14, 9)


def test_graphs_have_deterministic_names(subject):
    for operation in OPERATIONS.values():
        assert operation(subject()).bold.data.name == operation(subject()).bold.data.name
    other = dd.regress_out(subject(), confounds_for(subject(), seed=2)).bold.data.name
    assert other != OPERATIONS["regress_out"](subject()).bold.data.name


@every_operation
def test_tasks_are_named_after_what_they_do_not_after_an_address(subject, operation):
    names = operation(subject()).bold.data.dask.layers
    assert not [name for name in names if " at 0x" in name]


def test_a_task_has_the_same_name_in_another_process():
    once = "import dask.array as da; from daskdecode.data.preprocess import standardize_samples as s"
    script = f"{once}; print(s(da.ones((6, 4), chunks=(6, 2)), [1, 2, 1, 2, 1, 2], 'zscore_run').name)"
    names = {subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout for _ in range(2)}
    assert len(names) == 1


def test_runs_that_print_alike_are_not_taken_for_each_other():
    # NumPy prints the first and last three of more than 1,000 rows.
    n = 2400
    x = da.from_array(np.random.default_rng(0).normal(size=(n, 4)), chunks=(n, 2))
    one = np.tile([1, 2], n // 2)
    other = one.copy()
    other[1000:1002] = [2, 1]
    separately = [standardize_samples(x, runs, "zscore_run").compute() for runs in (one, other)]
    together = dask.compute(*(standardize_samples(x, runs, "zscore_run") for runs in (one, other)))
    for got, expected in zip(together, separately, strict=True):
        np.testing.assert_array_equal(got, expected)


# -- refusals ----------------------------------------------------------------------------------------------------------------------------


def test_unknown_scaling_names_the_nearest(subject):
    with pytest.raises(DecodingError, match=r"'zscore_runs' is unknown. Did you mean 'zscore_run'"):
        dd.standardize(subject(), "zscore_runs")
    with pytest.raises(DecodingError, match="'zscore' is unknown"):
        standardize_samples(subject().bold.data, None, "zscore")


def test_runs_are_needed_and_one_a_sample(subject):
    x = subject().bold.data
    with pytest.raises(DecodingError, match="needs the run of each sample"):
        standardize_samples(x, None, "zscore_run")
    with pytest.raises(DecodingError, match=r"34 samples, but runs of shape \(33,\)"):
        standardize_samples(x, np.zeros(33), "zscore_run")


def test_a_run_of_one_volume(subject):
    ds = subject(lengths=(6, 1, 7))
    with pytest.raises(DecodingError, match="Run 02 has one sample"):
        dd.standardize(ds, "zscore_run")
    np.testing.assert_array_equal(dd.detrend(ds).bold.values[6], ds.bold.values[6])


def test_a_single_sample_is_left_as_nilearn_leaves_it(subject):
    x = subject().bold.data[:1]
    with pytest.warns(UserWarning, match="single sample has no variance"):
        got = standardize_samples(x, None, "zscore_sample")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = clean(x.compute(), detrend=False, standardize="zscore_sample")
    np.testing.assert_array_equal(got.compute(), expected)


def test_confounds_that_do_not_fit_are_refused(subject):
    ds = subject()
    with pytest.raises(SourceError, match="33 rows but the data have 34 volumes"):
        dd.regress_out(ds, confounds_for(ds)[1:])
    with pytest.raises(SourceError, match="no columns"):
        dd.regress_out(ds, np.empty((34, 0)))
    frame = pd.DataFrame(confounds_for(ds, n=2), columns=["trans_x", "framewise_displacement"])
    frame.loc[0, "framewise_displacement"] = np.nan
    with pytest.raises(SourceError, match=r"'framewise_displacement' is not finite in 1 of 34 rows \(first: row 0\)"):
        dd.regress_out(ds, frame)
    with pytest.raises(SourceError, match="'trans_x' is not numeric"):
        dd.regress_out(ds, frame.assign(trans_x="much"))


def test_more_confounds_than_volumes_are_refused(subject):
    ds = subject()
    with pytest.raises(SourceError, match="Run 01 has 9 volumes and 8 independent confounds: nothing but its mean"):
        dd.regress_out(ds, confounds_for(ds, n=8))
