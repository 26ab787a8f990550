"""Fixtures that every room's tests share."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import dask
import pytest

# Workers in processes of their own unpickle what tests define by its module's name. At the end, so that the installed package comes first.
sys.path.append(str(Path(__file__).parents[1]))


# A scratch folder of this session's own: all that share Dask's usual one wait for its lock. Processes that tests start inherit it.
_SCRATCH = tempfile.mkdtemp(prefix="daskdecode-tests-")
os.environ["DASK_TEMPORARY_DIRECTORY"] = _SCRATCH
dask.config.set(temporary_directory=_SCRATCH)


atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)  # once all that works in it has been cleared away


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real Haxby data, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("DASKDECODE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "haxby-slice" / "bold.nii.gz").exists():
        pytest.skip(f"real Haxby data not found at {folder} (set DASKDECODE_TEST_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _no_scheduler_of_a_cluster_that_is_gone():
    """A test that ran out of time leaves Dask set to its Client, and every later test of the process would fail."""
    yield
    distributed = sys.modules.get("distributed")
    if distributed is not None and dask.config.get("scheduler", None) == "dask.distributed":
        try:
            distributed.default_client()
        except ValueError:
            dask.config.config.pop("scheduler", None)
