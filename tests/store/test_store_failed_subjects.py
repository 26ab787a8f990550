"""One damaged file does not lose the other subjects: it is named, and the same call adds it once it is mended."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from zarr.storage import LocalStore

import daskdecode as dd
from daskdecode.cli.main import main
from daskdecode.errors import CorruptFileError, DaskDecodeError, FailedSubjectsError, IncompleteStoreError, SelectionError
from daskdecode.store.convert import convert
from daskdecode.store.describe import describe
from daskdecode.store.layout import read_attributes
from daskdecode.testing import CountingStore


def truncate(path: Path) -> None:
    """What a broken copy leaves: found before anything is converted."""
    path.write_bytes(path.read_bytes()[:-900])


def flip(path: Path) -> None:
    """A wrong byte in a file of the right length: found only when the checksum at its end is reached."""
    values = bytearray(gzip.decompress(path.read_bytes()))
    whole = bytearray(gzip.compress(bytes(values), 0, mtime=0))
    whole[len(whole) // 2] ^= 1
    path.write_bytes(bytes(whole))


def another_grid(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1.0, 1, 1, 1])), path)


def no_brain(path: Path) -> None:
    for run in path.parent.glob("*_bold.nii.gz"):
        image = nib.load(run)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine, image.header), run)


@pytest.fixture
def study(tmp_path):
    """Three subjects of two runs, as BIDS."""
    return dd.simulate_study(tmp_path / "bids", n_subjects=3, n_runs=2, shape=(7, 9, 8), n_blocks=1)


def second(study: Path) -> Path:
    return study / "sub-02" / "func" / "sub-02_task-objectviewing_run-02_bold.nii.gz"


def assert_same(a: Path, b: Path) -> None:
    """The same subjects, and the same values, labels and masks, in the same order."""
    with xr.open_datatree(a, engine="zarr") as one, xr.open_datatree(b, engine="zarr") as other:
        one, other = ({node.path: node.to_dataset() for node in tree.subtree} for tree in (one, other))
        assert list(one) == list(other)
        for path, ds in one.items():
            xr.testing.assert_equal(ds, other[path])
    plans = [read_attributes(LocalStore(p)) for p in (a, b)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("damage", "said"),
    [(truncate, "ended before"), (flip, "checksum|damaged"), (another_grid, "one grid|affine"), (no_brain, "brain")],
)
def test_the_others_are_converted_and_it_is_named(study, tmp_path, damage, said, caplog):
    store, mended, expected = tmp_path / "study.zarr", tmp_path / "mended", tmp_path / "expected.zarr"
    shutil.copytree(study, mended)
    damage(second(study))
    with pytest.raises(FailedSubjectsError, match=rf"1 of 3 subjects could not be converted.*ubject 02: .*({said})") as raised:
        convert(study, store, progress=False)
    assert list(raised.value.failed) == ["02"]
    assert [r.levelname for r in caplog.records if "Subject 02 cannot be converted" in r.getMessage()] == ["WARNING"]
    assert list(dd.open_study(store).children) == ["sub-01", "sub-03"]
    assert describe(store)["complete"]
    assert not (store / "sub-02").exists()
    assert dd.verify(store, progress=False).ok
    with pytest.raises(SelectionError, match=f"'02'.*could not be converted.*({said})"):
        dd.open_subject(store, "02")
    # Again: it is tried again, and what is there is left alone.
    counting = CountingStore(LocalStore(store))
    with pytest.raises(FailedSubjectsError):
        convert(study, counting, progress=False)
    assert not [key for key in counting.sets if "/c/" in key and not key.startswith("sub-02")]
    # Mended: it is added, in its place.
    for run in mended.rglob("sub-02*_bold.nii.gz"):
        shutil.copy2(run, study / run.relative_to(mended))
    counting = CountingStore(LocalStore(store))
    convert(study, counting, progress=False)
    assert {key.split("/")[0] for key in counting.sets if "/bold/c/" in key} == {"sub-02"}
    convert(study, expected, progress=False)
    assert_same(store, expected)
    assert describe(store)["failed"] == {}


def test_where_nobody_can_be_converted_nothing_is_written(study, tmp_path):
    for path in study.glob("sub-*/func/*_run-01_bold.nii.gz"):
        truncate(path)
    with pytest.raises(CorruptFileError) as raised:
        convert(study, tmp_path / "study.zarr", progress=False)
    assert not isinstance(raised.value, FailedSubjectsError)
    assert not (tmp_path / "study.zarr").exists()


def test_a_mask_that_fits_one_subject_not(study, tmp_path):
    anat = study / "derivatives" / "daskdecode-simulation"
    path = anat / "sub-03" / "anat" / "sub-03_desc-brain_mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), path)
    with pytest.raises(FailedSubjectsError, match=r"ubject 03: .*grid"):
        convert(study, tmp_path / "study.zarr", mask=str(anat / "sub-{subject}/anat/sub-{subject}_desc-brain_mask.nii.gz"), progress=False)
    assert list(dd.open_study(tmp_path / "study.zarr").children) == ["sub-01", "sub-02"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("damage", [truncate, flip])
def test_what_a_store_holds_is_not_lost_to_a_file_that_broke_since(study, tmp_path, overwrite, damage):
    store = tmp_path / "study.zarr"
    convert(study, store, progress=False)
    before = dd.open_study(store).load()
    damage(second(study))
    with pytest.raises(DaskDecodeError):
        convert(study, store, overwrite=overwrite, progress=False)
    after = dd.open_study(store).load()
    xr.testing.assert_identical(before, after)


def test_a_store_to_be_replaced_may_lack_who_failed_before(study, tmp_path):
    store = tmp_path / "study.zarr"
    truncate(second(study))
    for _ in range(2):
        with pytest.raises(FailedSubjectsError):
            convert(study, store, overwrite=True, progress=False)
        assert list(dd.open_study(store).children) == ["sub-01", "sub-03"]
        assert not list(tmp_path.glob(".study.zarr.*"))


def test_an_interrupted_conversion_goes_on_without_who_broke_meanwhile(study, tmp_path, monkeypatch):
    store = tmp_path / "study.zarr"
    from daskdecode.store.write import WriteFile

    call = WriteFile.__call__

    def dies(self):
        if "sub-03" in str(self.file.path):
            raise KeyboardInterrupt
        call(self)

    with monkeypatch.context() as patched:
        patched.setattr(WriteFile, "__call__", dies)
        import dask

        with dask.config.set(scheduler="synchronous"), pytest.raises(KeyboardInterrupt):
            convert(study, store, progress=False)
    with pytest.raises(IncompleteStoreError):
        dd.open_study(store)
    truncate(second(study))
    with pytest.raises(FailedSubjectsError, match="ubject 02"):
        convert(study, store, progress=False)
    assert list(dd.open_study(store).children) == ["sub-01", "sub-03"]
    assert not (store / "sub-02").exists()


def test_another_subject_is_another_conversion(study, tmp_path):
    store = tmp_path / "study.zarr"
    convert(study, store, subjects=["01", "02"], progress=False)
    with pytest.raises(ValueError, match="holds another conversion"):
        convert(study, store, progress=False)


def test_the_command_names_them_and_says_so_by_its_status(study, tmp_path):
    truncate(second(study))
    ran = CliRunner().invoke(main, ["convert", str(study), str(tmp_path / "study.zarr")])
    assert ran.exit_code == 1
    assert "complete, but for 1 subject" in ran.stdout
    assert "subject 02: NOT CONVERTED: " in ran.stdout
    assert "subject 03: 2 runs" in ran.stdout
    ran = CliRunner().invoke(main, ["info", str(tmp_path / "study.zarr")])
    assert ran.exit_code == 0
    assert "NOT CONVERTED" in ran.stdout


def test_where_nobody_can_be_converted_the_reason_of_most_is_told(study, tmp_path):
    truncate(study / "sub-01" / "func" / "sub-01_task-objectviewing_run-01_bold.nii.gz")
    with pytest.raises(DaskDecodeError, match=r"nowhere\.nii\.gz"):
        convert(study, tmp_path / "s.zarr", mask=str(tmp_path / "nowhere.nii.gz"), progress=False)
    with pytest.raises(DaskDecodeError, match=r"studdy does not exist: expected a BIDS folder or a 4-D NIfTI image"):
        convert(tmp_path / "studdy", tmp_path / "s.zarr", progress=False)
    assert not (tmp_path / "s.zarr").exists()
