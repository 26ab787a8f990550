"""Conversions that are interrupted, repeated, in each other's way, or fed with what they cannot use."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dask
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from zarr.storage import LocalStore, MemoryStore, WrapperStore

import daskdecode as dd
from daskdecode.alone import alone
from daskdecode.errors import CorruptFileError, IncompleteStoreError, SelectionError, SourceError, StoreError
from daskdecode.store import write
from daskdecode.store.describe import describe

SHAPE = (7, 8, 9)


class FullDisk(WrapperStore):
    """A store on a disk that is full after some writes."""

    def __init__(self, store, n_writes: int = 10**9) -> None:
        super().__init__(store)
        self.n_left = n_writes

    async def set(self, key, value) -> None:
        self.n_left -= 1
        if self.n_left < 0:
            raise OSError(28, "No space left on device")
        await self._store.set(key, value)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a store and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def unfinish(store: Path) -> None:
    """Make a store what it was before its third run was written."""
    root = store / "zarr.json"
    root.write_text(root.read_text().replace('"complete": true', '"complete": false', 1))
    shutil.rmtree(store / "sub-1/run-03")


def damaged(patch: pytest.MonkeyPatch, path: Path) -> None:
    """Let a file be found damaged once it is read, as a gzip file is whose end is."""
    streamed = write.stream_volumes

    def stream(header, **kwargs):
        yield from streamed(header, **kwargs)
        if header.path.name == path.name:
            raise CorruptFileError(f"{path} is damaged")

    patch.setattr(write, "stream_volumes", stream)


@pytest.fixture
def reference(tmp_path: Path, make_runs) -> dict[str, bytes]:
    """What an uninterrupted conversion of ``make_runs()`` gives."""
    dd.convert(make_runs(), tmp_path / "reference.zarr", mask="none", rois={"roi": np.ones(SHAPE, bool)})
    return tree(tmp_path / "reference.zarr")


def again(runs, store, **kwargs):
    return dd.convert(runs, store, mask="none", rois={"roi": np.ones(SHAPE, bool)}, **kwargs)


# --- interrupted ------------------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_an_incomplete_store_which_resumes(tmp_path: Path, make_runs, reference) -> None:
    runs = make_runs()
    store = FullDisk(LocalStore(tmp_path / "probe.zarr"))
    again(runs, store)
    n_writes = 10**9 - store.n_left
    assert n_writes > 20
    for n in {1, 2, 5, n_writes // 2, n_writes - 8, n_writes - 2, n_writes - 1}:
        folder = tmp_path / f"full-{n}.zarr"
        with pytest.raises(StoreError, match="No space left on device"):
            again(runs, FullDisk(LocalStore(folder), n))
        with pytest.raises(IncompleteStoreError, match="has not finished"):
            dd.open_subject(folder)
        with pytest.raises(IncompleteStoreError, match="has not finished"):
            dd.verify(folder)
        assert not describe(folder)["complete"]
        again(runs, folder)
        assert tree(folder) == reference


def test_metadata_whose_writing_was_cut_off_leaves_nothing(tmp_path: Path, make_runs, reference) -> None:
    runs = make_runs()
    again(runs, tmp_path / "s.zarr")
    unfinish(tmp_path / "s.zarr")
    for folder in ("", "sub-1"):
        (tmp_path / "s.zarr" / folder / "zarr.0123abcd.partial").write_bytes(b"{")
    again(runs, tmp_path / "s.zarr")
    assert tree(tmp_path / "s.zarr") == reference


def test_nobody_writes_any_more_once_a_conversion_has_failed(tmp_path: Path, make_runs) -> None:
    class Slow(WrapperStore):
        """One run's values cannot be written; those of another are on their way for a while."""

        n_writing, was_writing = 0, False

        async def set(self, key, value) -> None:
            if "run-02/bold/c" in key:
                while not self.n_writing:
                    await asyncio.sleep(0.01)
                raise OSError(28, "No space left on device")
            if "run-01/bold/c" in key:
                self.n_writing += 1
                self.was_writing = True
                await asyncio.sleep(0.5)
                self.n_writing -= 1
            await self._store.set(key, value)

    store = Slow(LocalStore(tmp_path / "s.zarr"))
    with dask.config.set(scheduler="threads", num_workers=2), pytest.raises(StoreError, match="No space left"):
        again(make_runs(), store)
    assert store.was_writing
    assert store.n_writing == 0


def test_of_two_tasks_that_write_a_run_the_later_has_it(tmp_path: Path, make_runs, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the worker of a killed driver goes on while the next call writes again: what that has deleted is not declared whole."""
    flush, finish, later = write._RunWriter._flush, write._RunWriter.finish, []

    def begin(self):
        if not later:
            later.append(self._node)
            write._RunWriter(self._job, self._partition, self._node, self._columns, self._voxels_per_chunk)  # which ends without a word

    def flush_then_begin(self, segment):
        flush(self, segment)
        begin(self)

    def begin_then_flush(self, segment):
        begin(self)
        flush(self, segment)

    def begin_then_finish(self, *args):
        begin(self)
        finish(self, *args)

    runs = make_runs()
    for name, patched in (("_flush", flush_then_begin), ("_flush", begin_then_flush), ("finish", begin_then_finish)):
        later.clear()
        store = tmp_path / f"{name}-{patched.__name__}.zarr"
        with monkeypatch.context() as patch:
            patch.setattr(write._RunWriter, name, patched)
            with pytest.raises(StoreError, match="is written anew by a later task: this one gives way"):
                again(runs, store)
        (node,) = later
        assert not json.loads((store / node / "zarr.json").read_text())["attributes"]["complete"]
        again(runs, store)
        assert tree(store) == reference


def test_a_disk_full_from_the_start_leaves_nothing(tmp_path: Path, make_runs) -> None:
    with pytest.raises(StoreError, match="No space left"):
        again(make_runs(), FullDisk(LocalStore(tmp_path / "s.zarr"), 0))
    assert [p.name for p in tmp_path.iterdir()] == ["nifti"]


def test_what_is_missing_is_said(tmp_path: Path, make_runs) -> None:
    runs = make_runs()
    again(runs, tmp_path / "s.zarr")
    zarr_json = tmp_path / "s.zarr" / "zarr.json"
    zarr_json.write_text(zarr_json.read_text().replace('"complete": true', '"complete": false', 1))
    shutil.rmtree(tmp_path / "s.zarr/sub-1/run-02")
    with pytest.raises(IncompleteStoreError, match=r"1 of 3 runs are missing \(sub-1/run-02\).*convert again") as error:
        dd.open_subject(tmp_path / "s.zarr")
    assert "run-01" not in str(error.value)
    described = describe(tmp_path / "s.zarr")
    assert described["missing"] == ["sub-1/run-02"]
    assert [run["run"] for run in described["subjects"][0]["runs"]] == ["01", "03"]


KILL = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
import daskdecode as dd
from daskdecode.errors import CorruptFileError, IncompleteStoreError, StoreError
import daskdecode.store.convert, daskdecode.store.open, daskdecode.sources.bids

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
runs = [dd.Run(p, labels=["face", "cat"] * 20, run=p.name[4:6]) for p in sorted((folder / "nifti").iterdir())]


def convert(store):
    dd.convert(runs, store, mask="none", progress=False)


def look(store):
    try:
        dd.open_subject(store)
        os._exit(10)
    except (IncompleteStoreError, StoreError) as error:
        os._exit(11 if isinstance(error, IncompleteStoreError) else 12)


def in_child(work, store, kill_after=None):
    # A fork of this process, which has imported everything and used nothing: the moments fall into the conversion, not into imports.
    pid = os.fork()
    if pid == 0:
        work(store)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


durations = []
for name in ("reference.zarr", "another.zarr"):
    began = time.perf_counter()
    assert in_child(convert, folder / name) == 0
    durations.append(time.perf_counter() - began)
for n in range(10):
    store = folder / f"killed-{n}.zarr"
    # A moment of each tenth, of the shorter one: a busy machine would else put most of them behind the end.
    killed = in_child(convert, store, (n + rng.random()) / 10 * min(durations))
    print(n, killed, in_child(look, store))
    assert in_child(convert, store) == 0
    assert in_child(look, store) == 10
"""


def test_killed_at_ten_random_moments_then_resumed_equals_uninterrupted(tmp_path: Path, write_image, random_values) -> None:
    for n in range(4):
        write_image(tmp_path / "nifti" / f"run-{n:02}.nii.gz", random_values("<i2", 40, seed=n, shape=(20, 21, 22)))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILL, str(tmp_path), "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = [line.split() for line in done.stdout.splitlines()]
    # Killed: incomplete (11), or before anything was written (12); only one that had ended may look whole (10).
    for _, exit_code, looks in outcomes:
        assert looks in ("11", "12") if exit_code == "-9" else looks == "10", outcomes
    assert sum(looks == "11" for _, _, looks in outcomes) >= 3, outcomes
    reference = tree(tmp_path / "reference.zarr")
    for n in range(10):
        assert tree(tmp_path / f"killed-{n}.zarr") == reference
    assert not list(tmp_path.glob(".*"))


# --- again, over and beside ---------------------------------------------------------------------------------------------------------


def test_converting_again_does_nothing(tmp_path: Path, make_runs) -> None:
    again(make_runs(), tmp_path / "s.zarr")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")}
    again(make_runs(), tmp_path / "s.zarr")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")}


def test_resume_false_refuses_what_is_there(tmp_path: Path, make_runs) -> None:
    runs = make_runs()
    again(runs, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="exists and is complete"):
        again(runs, tmp_path / "s.zarr", resume=False)


def test_another_conversion_is_not_mixed_in(tmp_path: Path, make_runs, reference) -> None:
    runs = make_runs()
    others = make_runs(2, 9, subject="2")
    again(others, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"holds another conversion, which is complete: .*overwrite=True"):
        again(runs, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="brain mask"):
        dd.convert(others, tmp_path / "s.zarr", mask=np.ones(SHAPE, bool))
    relabelled = [dd.Run(r.bold, labels=["dog"] * 9, subject="2", run=r.run) for r in others]
    with pytest.raises(StoreError, match="labels"):
        again(relabelled, tmp_path / "s.zarr")
    again(runs, tmp_path / "s.zarr", overwrite=True)
    assert tree(tmp_path / "s.zarr") == reference


@pytest.mark.parametrize("n_writes", [1, 2, 7])
def test_an_interrupted_overwrite_resumes_without_the_old_runs(tmp_path: Path, make_runs, reference, n_writes: int) -> None:
    runs = make_runs()
    again(runs, tmp_path / "s.zarr")
    poisoned = tmp_path / "s.zarr/sub-1/run-01/left.over"
    poisoned.write_text("from the store before")
    with pytest.raises(StoreError, match="No space"):
        again(runs, FullDisk(LocalStore(tmp_path / "s.zarr"), n_writes), overwrite=True)
    with pytest.raises(IncompleteStoreError):
        dd.open_subject(tmp_path / "s.zarr")
    again(runs, tmp_path / "s.zarr")
    assert tree(tmp_path / "s.zarr") == reference


class StuckDelete(WrapperStore):
    """A store from which only one folder can be deleted."""

    n_left = 1

    async def delete_dir(self, prefix) -> None:
        self.n_left -= 1
        if self.n_left < 0:
            raise OSError(5, "Input/output error")
        await self._store.delete_dir(prefix)


def test_an_overwrite_interrupted_while_it_deletes_looks_incomplete(tmp_path: Path, make_runs) -> None:
    runs = make_runs(1) + make_runs(1, subject="2")
    again(runs, tmp_path / "s.zarr")
    whole = tree(tmp_path / "s.zarr")
    (tmp_path / "s.zarr/sub-2/run-01/left.over").write_text("from the store before")
    with pytest.raises(StoreError, match="Input/output error"):
        again(runs, StuckDelete(LocalStore(tmp_path / "s.zarr")), overwrite=True)
    with pytest.raises(IncompleteStoreError):
        dd.open_subject(tmp_path / "s.zarr", "2")
    again(runs, tmp_path / "s.zarr")
    assert tree(tmp_path / "s.zarr") == whole


@pytest.mark.parametrize("mask", ["none", "auto"])
@pytest.mark.parametrize("n", [0, 2])
def test_a_source_mended_since_the_interruption_is_converted_again(
    tmp_path: Path, make_runs, write_image, random_values, mask: str, n: int
) -> None:
    """Run 0 was written already, run 2 was not; the other values move the brain that is found."""
    runs = make_runs()
    dd.convert(runs, tmp_path / "s.zarr", mask=mask)
    unfinish(tmp_path / "s.zarr")
    values = random_values("<i2", 6, seed=99)
    values[3:, 2:6, 2:7] = np.abs(values[3:, 2:6, 2:7] // 2) + 16000
    write_image(Path(runs[n].bold), values)
    dd.convert(runs, tmp_path / "s.zarr", mask=mask)
    assert dd.verify(tmp_path / "s.zarr").ok
    dd.convert(runs, tmp_path / "fresh.zarr", mask=mask)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "fresh.zarr")


def test_a_mended_source_that_is_longer_and_on_another_grid(tmp_path: Path, make_runs, write_image, random_values) -> None:
    (run,) = make_runs(1)
    run = dd.Run(run.bold, run="01")
    with pytest.raises(StoreError):
        dd.convert(run, FullDisk(LocalStore(tmp_path / "s.zarr"), 15), mask="none")
    write_image(Path(run.bold), random_values("<i2", 9, shape=(9, 8, 7)))
    dd.convert(run, tmp_path / "s.zarr", mask="none")
    assert dd.verify(tmp_path / "s.zarr").ok
    assert dd.open_subject(tmp_path / "s.zarr").attrs["shape"] == [9, 8, 7]
    write_image(Path(run.bold), random_values("<i2", 5))
    with pytest.raises(StoreError, match=r"which is complete: .* has changed since"):
        dd.convert(run, tmp_path / "s.zarr", mask="none")


def test_a_corrupt_source_is_named_and_once_mended_the_conversion_goes_on(
    tmp_path: Path, make_runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_runs()
    again(runs, tmp_path / "s.zarr")
    unfinish(tmp_path / "s.zarr")
    broken = Path(runs[2].bold)
    with monkeypatch.context() as patch:
        damaged(patch, broken)
        with pytest.raises(CorruptFileError, match=f"^{broken} is damaged"):
            again(runs, tmp_path / "s.zarr")
    written = tmp_path / "s.zarr/sub-1/run-01/bold/c/0/0"
    before = written.stat().st_mtime_ns
    with pytest.raises(StoreError, match="brain mask or the regions"):
        dd.convert(runs, tmp_path / "s.zarr", mask=np.ones(SHAPE, bool))
    os.utime(broken, ns=(1, 1))  # copied again
    again(runs, tmp_path / "s.zarr")
    assert dd.verify(tmp_path / "s.zarr").ok
    assert written.stat().st_mtime_ns == before


def test_an_overwrite_that_fails_leaves_the_old_store_whole(tmp_path: Path, make_runs, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make_runs(2, 9, subject="2"), make_runs()
    store, beside = tmp_path / "s.zarr", tmp_path / ".s.zarr.new"
    again(old, store)
    before = tree(store)
    broken = Path(new[2].bold)
    for _ in range(2):
        with monkeypatch.context() as patch:
            damaged(patch, broken)
            with pytest.raises(CorruptFileError):
                again(new, store, overwrite=True)
    assert tree(store) == before
    assert dd.verify(store).ok
    written = (beside / "sub-1/voxel/c/0").stat().st_ino
    os.utime(broken, ns=(1, 1))  # copied again
    again(new, store, overwrite=True)
    assert (store / "sub-1/voxel/c/0").stat().st_ino == written  # the same call went on with the new one
    again(new, tmp_path / "fresh.zarr")
    assert tree(store) == tree(tmp_path / "fresh.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh.zarr", "nifti", "s.zarr"]


def test_an_unfinished_overwrite_is_not_taken_for_another(tmp_path: Path, make_runs, monkeypatch: pytest.MonkeyPatch) -> None:
    from daskdecode.store import convert

    runs, others = make_runs(), make_runs(2, 9, subject="2")
    again(runs, tmp_path / "s.zarr")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_finalise", fail)
        with pytest.raises(StoreError, match="No space"):
            again(others, tmp_path / "s.zarr", overwrite=True)
    assert (tmp_path / ".s.zarr.new/sub-2").exists()
    again(runs, tmp_path / "s.zarr", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "s.zarr").iterdir()) == ["sub-1", "zarr.json"]
    assert dd.verify(tmp_path / "s.zarr").ok


@pytest.mark.parametrize("killed_after", [1, 2])
def test_an_overwrite_killed_while_the_folders_change_places(
    tmp_path: Path, make_runs, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    runs, store = make_runs(), tmp_path / "s.zarr"
    again(runs, store)
    rename, n_left = Path.rename, killed_after

    def rename_then_die(self, target):
        nonlocal n_left
        done = rename(self, target)
        n_left -= 1
        if n_left == 0:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_then_die)
        with pytest.raises(KeyboardInterrupt):
            again(runs, store, overwrite=True)
    assert (tmp_path / ".s.zarr.old").exists()
    again(runs, store)  # puts the old one back, or deletes it
    assert dd.verify(store).ok
    again(runs, store, overwrite=True)
    assert not list(tmp_path.glob(".*"))


def test_runs_that_have_gone_are_written_again(tmp_path: Path, make_runs, reference, caplog: pytest.LogCaptureFixture) -> None:
    again(make_runs(), tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr/sub-1/run-02")
    for look in (describe, dd.open_subject, dd.open_study):
        with pytest.raises(StoreError, match=r"1 of its runs are missing or damaged \(sub-1/run-02\)\. .*convert again"):
            look(tmp_path / "s.zarr")
    assert "sub-1/run-02" in str(dd.verify(tmp_path / "s.zarr"))
    again(make_runs(), tmp_path / "s.zarr")
    assert "lacks 1 of its runs (sub-1/run-02)" in caplog.text
    assert tree(tmp_path / "s.zarr") == reference
    shutil.rmtree(tmp_path / "s.zarr/sub-1")
    for look in (describe, dd.open_subject):
        with pytest.raises(StoreError, match="sub-1"):
            look(tmp_path / "s.zarr")
    again(make_runs(), tmp_path / "s.zarr")
    assert tree(tmp_path / "s.zarr") == reference


def test_the_spelling_of_a_path_does_not_matter(tmp_path: Path, make_runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def respelled(folder):
        return [dd.Run(f"{folder}/{Path(r.bold).name}", labels=r.labels, run=r.run) for r in make_runs()]

    again(make_runs(), tmp_path / "s.zarr")
    (tmp_path / "link").symlink_to(tmp_path / "nifti")
    (tmp_path / "store-link").symlink_to(tmp_path / "s.zarr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = tree(tmp_path / "s.zarr")
    for folder, store in (("../nifti", "../s.zarr"), (tmp_path / "link", tmp_path / "store-link"), ("../elsewhere/../nifti", "../s.zarr")):
        again(respelled(folder), store)
        assert dd.open_subject(store).bold.data.name == dd.open_subject(tmp_path / "s.zarr").bold.data.name
    assert tree(tmp_path / "s.zarr") == before
    again(respelled("../nifti"), tmp_path / "store-link", overwrite=True)  # what the link points to is replaced
    assert (tmp_path / "store-link").is_symlink()
    assert tree(tmp_path / "s.zarr") == before


def test_a_source_changed_while_it_is_read_is_found(tmp_path: Path, make_runs, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = write.stream_volumes

    def change_then_stream(header, **kwargs):
        os.utime(header.path, ns=(1, 1))
        return streamed(header, **kwargs)

    monkeypatch.setattr(write, "stream_volumes", change_then_stream)
    with pytest.raises(SourceError, match="was changed while it was converted"):
        again(make_runs(), tmp_path / "s.zarr")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["notes.txt", "zarr.json"])
def test_a_folder_that_is_not_a_store_is_never_touched(tmp_path: Path, make_runs, overwrite: bool, content: str) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / content).write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    before = tree(folder)
    with pytest.raises(StoreError, match="not a daskdecode study store"):
        again(make_runs(), folder, overwrite=overwrite)
    assert tree(folder) == before


def test_a_file_in_the_way(tmp_path: Path, make_runs) -> None:
    runs = make_runs()
    for store in (runs[0].bold, Path(runs[0].bold) / "s.zarr"):
        with pytest.raises(StoreError):
            again(runs, store)


def test_the_folder_of_the_sources_is_not_a_store(tmp_path: Path, make_runs) -> None:
    runs = make_runs()
    with pytest.raises(StoreError, match="not a daskdecode study store"):
        again(runs, tmp_path / "nifti", overwrite=True)
    assert all(Path(run.bold).exists() for run in runs)


def test_not_inside_another_store(tmp_path: Path, make_runs) -> None:
    runs = make_runs()
    again(runs, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="lies inside a Zarr store"):
        again(runs, tmp_path / "s.zarr/sub-1/t.zarr")


def test_one_conversion_at_a_time(tmp_path: Path, make_runs) -> None:
    runs = make_runs()
    mark = tmp_path / ".s.zarr.lock"
    with (
        alone(mark, "", StoreError),
        pytest.raises(StoreError, match=rf"s\.zarr is being written by another conversion: process {os.getpid()} on "),
    ):
        again(runs, tmp_path / "s.zarr")
    mark.touch()  # of a process that was killed
    again(runs, tmp_path / "s.zarr")
    assert not mark.exists()


def test_inside_the_bids_folder(tmp_path: Path) -> None:
    bids = dd.simulate_study(tmp_path / "bids", n_runs=2, shape=(9, 10, 8))
    before = dd.find_runs(bids)
    store = bids / "derivatives" / "daskdecode" / "study.zarr"
    for _ in range(2):
        dd.convert(bids, store, mask="none")
        assert dd.find_runs(bids) == before
    assert dd.open_subject(store).sizes["voxel"] == 9 * 10 * 8


# --- bad input: an error before any long work, and nothing left behind ------------------------------------------------------------


def test_bad_input_leaves_nothing(tmp_path: Path, make_runs, write_image, random_values) -> None:
    runs = make_runs()
    store = tmp_path / "out" / "s.zarr"
    far = nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4))
    affine = nib.load(runs[0].bold).affine
    (tmp_path / "short.nii").write_bytes(nib.Nifti1Image(np.ones(SHAPE, np.uint8), affine).to_bytes()[:500])
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "junk.nii").write_bytes(b"junk" * 200)
    cases = [
        ({"source": runs, "mask": np.zeros(SHAPE, bool)}, SelectionError, "empty"),
        ({"source": runs, "mask": np.ones((7, 8, 8), bool)}, SelectionError, "resample_to_img"),
        ({"source": runs, "mask": far}, SelectionError, "affine.*resample_to_img"),
        ({"source": runs, "mask": np.arange(504).reshape(SHAPE)}, SelectionError, "504 different values"),
        ({"source": runs, "mask": tmp_path / "none.nii"}, SelectionError, "cannot be read"),
        ({"source": runs, "mask": "none", "rois": {"a b": np.ones(SHAPE)}}, SelectionError, "cannot name a mask"),
        (
            {"source": runs, "mask": np.arange(504).reshape(SHAPE) == 3, "rois": {"r": np.arange(504).reshape(SHAPE) == 4}},
            SelectionError,
            "None of the 1",
        ),
        ({"source": runs, "labels": ["face"] * 6}, SourceError, "labels="),
        ({"source": runs, "task": "rest"}, SourceError, "task="),
        ({"source": runs[0].bold, "labels": ["face"] * 5}, SourceError, "5 labels but 6 volumes"),
        ({"source": [runs[0], "x.nii"]}, SourceError, "list of dd.Run"),
        ({"source": []}, SourceError, "empty"),
        ({"source": None}, SourceError, "BIDS folder.*found None"),
        ({"source": 3}, SourceError, "BIDS folder.*found 3"),
        ({"source": nib.load(runs[0].bold)}, SourceError, f"loaded image.*pass its path, .*{Path(runs[0].bold).name}"),
        ({"source": [far]}, SourceError, "loaded image.*save it first"),
        ({"source": runs, "mask": "none", "rois": ["x"]}, SourceError, "every region needs a name"),
        ({"source": runs, "mask": np.ones(SHAPE, complex)}, SelectionError, "complex128 values"),
        ({"source": runs, "mask": tmp_path / "short.nii"}, SourceError, "short.nii.*ends early"),
        ({"source": runs, "mask": tmp_path / "empty.nii.gz"}, SelectionError, "empty.nii.gz.*cannot be read"),
        ({"source": runs, "mask": tmp_path / "junk.nii"}, SelectionError, "junk.nii.*cannot be read"),
        ({"source": tmp_path / "absent.nii.gz"}, SourceError, "does not exist"),
        ({"source": tmp_path / "nifti", "labels": ["face"]}, SourceError, "is a folder"),
    ]
    for arguments, kind, match in cases:
        with pytest.raises(kind, match=match):
            dd.convert(store=store, **arguments)
        assert not store.parent.exists(), arguments
    truncated = Path(runs[1].bold)
    truncated.write_bytes(truncated.read_bytes()[:-900])
    with pytest.raises(SourceError, match=r"truncated|damaged"):
        again(runs, store)
    assert not store.parent.exists()


@pytest.mark.parametrize("store", [None, 3, "foo://x/t.zarr"])
def test_what_is_no_place_for_a_store(make_runs, store) -> None:
    for use in (lambda: again(make_runs(), store), lambda: describe(store), lambda: dd.open_subject(store)):
        with pytest.raises(StoreError, match=r"cannot be opened|A store is"):
            use()


class NoCredentialsError(Exception):
    """As botocore's: no OSError."""


class Unreachable(WrapperStore):
    """A distant store that asks for credentials."""

    async def get(self, key, prototype, byte_range=None):
        raise NoCredentialsError("Unable to locate credentials")

    async def is_empty(self, prefix) -> bool:
        raise NoCredentialsError("Unable to locate credentials")


def test_a_store_that_cannot_be_reached(make_runs) -> None:
    for use in (lambda s: again(make_runs(), s), describe, dd.open_subject):
        with pytest.raises(StoreError, match="cannot be reached: Unable to locate credentials"):
            use(Unreachable(MemoryStore()))


def test_a_damaged_root_says_what_helps(tmp_path: Path, make_runs) -> None:
    again(make_runs(), tmp_path / "s.zarr")
    (tmp_path / "s.zarr/zarr.json").write_text("{")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"delete .*s\.zarr yourself and convert again") as error:
            again(make_runs(), tmp_path / "s.zarr", overwrite=overwrite)
        assert "overwrite" not in str(error.value)


def test_a_region_outside_the_kept_voxels_is_told(tmp_path: Path, make_runs, caplog: pytest.LogCaptureFixture) -> None:
    region, brain = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    region[2, 3, 4:6] = True
    brain[2, 3, 5] = False
    dd.convert(make_runs(1), tmp_path / "s.zarr", mask=brain, rois={"r": region})
    assert "Mask 'r' of subject 1 has 2 voxels, of which 1 is kept" in caplog.text
    caplog.clear()
    dd.add_mask(tmp_path / "s.zarr", "later", region)
    assert "Mask 'later' of subject 1 has 2 voxels, of which 1 is kept" in caplog.text
    (subject,) = describe(tmp_path / "s.zarr")["subjects"]
    assert subject["masks"] == {"later": 1, "r": 1}
    assert subject["mask_sizes"] == {"later": 2, "r": 2}


def test_an_image_without_a_brain(tmp_path: Path, write_image) -> None:
    source = write_image(tmp_path / "flat.nii.gz", np.zeros((*SHAPE, 4), "<i2"))
    with pytest.raises(SelectionError, match=r"found no brain.*mask='none'"):
        dd.convert(dd.Run(source), tmp_path / "s.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["flat.nii.gz"]


# --- what is kept -----------------------------------------------------------------------------------------------------------------


def test_constant_and_nonfinite_voxels_are_counted(tmp_path: Path, write_image, random_values, caplog: pytest.LogCaptureFixture) -> None:
    values = random_values("<f4", 6)  # three voxels with NaN, infinity, -0.0
    values[4, 4, 4, :] = 12.5
    source = write_image(tmp_path / "in.nii", values)
    with caplog.at_level(logging.WARNING, logger="daskdecode"):
        dd.convert(dd.Run(source), tmp_path / "s.zarr", mask="none")
    (run,) = describe(tmp_path / "s.zarr")["subjects"][0]["runs"]
    assert (run["n_nonfinite_voxels"], run["n_constant_voxels"]) == (2, 1)
    assert "sub-1/run-1 has 2 nonfinite voxels" in caplog.text


def test_sessions_and_subjects(tmp_path: Path, make_runs) -> None:
    runs = make_runs(2, session="a") + make_runs(1, session="b") + make_runs(1, subject="xy", session="a")
    again(runs, tmp_path / "s.zarr")
    both = dd.open_subject(tmp_path / "s.zarr", "sub-1")
    assert both.session.values.tolist() == ["a"] * 12 + ["b"] * 6
    assert "session" not in both.attrs
    only = dd.open_subject(tmp_path / "s.zarr", "1", session="ses-b")
    assert (only.attrs["session"], only.sizes["time"]) == ("b", 6)
    np.testing.assert_array_equal(only.bold.values, both.bold.values[12:])
    with pytest.raises(SelectionError, match="2 subjects"):
        dd.open_subject(tmp_path / "s.zarr")
    with pytest.raises(SelectionError, match="Did you mean 'xy'"):
        dd.open_subject(tmp_path / "s.zarr", "xz")
    with pytest.raises(SelectionError, match="no session 'c'"):
        dd.open_subject(tmp_path / "s.zarr", "1", "c")
    study = dd.open_study(tmp_path / "s.zarr")
    assert [node.path for node in study.leaves] == ["/sub-1/ses-a", "/sub-1/ses-b", "/sub-xy/ses-a"]
    np.testing.assert_array_equal(study["sub-1/ses-b"].bold.values, only.bold.values)
    files = dd.export(tmp_path / "s.zarr", tmp_path / "out")
    assert sorted(str(f.relative_to(tmp_path / "out").parent) for f in files) == [
        "sub-1/ses-a",
        "sub-1/ses-a",
        "sub-1/ses-b",
        "sub-xy/ses-a",
    ]


def test_auto_mask_finds_the_simulated_brain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bids = dd.simulate_study(tmp_path / "bids", n_runs=2)
    with caplog.at_level(logging.INFO, logger="daskdecode"):
        dd.convert(bids, tmp_path / "s.zarr")
    ds = dd.open_subject(tmp_path / "s.zarr")
    assert f"keeps {ds.sizes['voxel']} of {np.prod(ds.attrs['shape'])} voxels" in caplog.text
    (path,) = bids.rglob("*desc-brain_mask.nii.gz")
    brain = nib.load(path).get_fdata() > 0
    found = np.zeros(brain.shape, bool)
    found.ravel()[ds.voxel.values] = True
    assert 2 * (found & brain).sum() / (found.sum() + brain.sum()) > 0.9


def test_mask_for_each_subject(tmp_path: Path, make_runs) -> None:
    runs = make_runs(1) + make_runs(1, subject="xy")
    for n, subject in enumerate(["1", "xy"]):
        inside = np.zeros(SHAPE, np.uint8)
        inside[: n + 2] = 1
        nib.Nifti1Image(inside, nib.load(runs[0].bold).affine).to_filename(tmp_path / f"mask-{subject}.nii.gz")
    dd.convert(runs, tmp_path / "s.zarr", mask=str(tmp_path / "mask-{subject}.nii.gz"))
    assert [dd.open_subject(tmp_path / "s.zarr", s).sizes["voxel"] for s in ("1", "xy")] == [2 * 72, 3 * 72]


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_the_scheduler_does_not_matter(tmp_path: Path, make_runs, reference, scheduler: str) -> None:
    with dask.config.set(scheduler=scheduler):
        again(make_runs(), tmp_path / "s.zarr")
    assert set(tree(tmp_path / "s.zarr")) == set(reference)
    a, b = (dd.open_subject(tmp_path / name) for name in ("s.zarr", "reference.zarr"))
    np.testing.assert_array_equal(a.bold.values, b.bold.values)


def test_tutorial_labels(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "haxby-slice"
    dd.convert(folder / "bold.nii.gz", tmp_path / "s.zarr", labels=folder / "labels.txt", mask=folder / "mask.nii.gz")
    ds = dd.open_subject(tmp_path / "s.zarr")
    expected = pd.read_csv(folder / "labels.txt", sep=" ")
    assert ds.label.values.tolist() == expected["labels"].tolist()
    assert ds.run.values.tolist() == expected["chunks"].astype(str).tolist()
    image = nib.load(folder / "bold.nii.gz").get_fdata()
    np.testing.assert_array_equal(ds.bold.values, image[ds.i.values, ds.j.values, ds.k.values].T)
    assert dd.verify(tmp_path / "s.zarr").ok
