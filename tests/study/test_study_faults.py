"""Studies on clusters, with workers that die and drivers that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster
from sklearn.linear_model import RidgeClassifier
from zarr.storage import LocalStore

import daskdecode as dd
from daskdecode.study.decode import decode_study
from daskdecode.testing import CountingStore

LABELS = ["face", "cat"]


def decoder(**options):
    # As the command line says it: what is said is compared.
    return dd.Decoder(**{"estimator": "ridge_classifier", "mask": "vt", "scoring": "roc_auc", "screening_percentile": 20.0} | options)


def files_of(folder: Path) -> dict[str, bytes]:
    """Results, without reports (they name the memory that was free) and records (they name files of reports)."""
    kept = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".html" and ".daskdecode" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}


@pytest.fixture
def client():
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=2, threads_per_worker=2, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


class Dies(RidgeClassifier):
    """Takes its process along where it is given 32 samples: of the subject with three runs, two to train on."""

    def fit(self, X, y, sample_weight=None):
        if len(X) == 32:
            os._exit(1)
        return super().fit(X, y, sample_weight)


@pytest.mark.slow
def test_a_cluster_gives_what_threads_give(study_store, tmp_path, client):
    scores = decode_study(study_store, decoder(), labels=LABELS, folder=tmp_path / "cluster", progress=False)
    with dask.config.set(scheduler="threads"):
        expected = decode_study(study_store, decoder(), labels=LABELS, folder=tmp_path / "threads", progress=False)
    assert scores.identical(expected)
    assert files_of(tmp_path / "cluster") == files_of(tmp_path / "threads")


@pytest.mark.slow
def test_whose_workers_are_killed_is_named_and_the_others_go_on(study_store, tmp_path, client):
    killer = decoder(estimator=Dies(), param_grid={})
    scores = decode_study(study_store, killer, labels=LABELS, folder=tmp_path / "out", progress=False)
    assert scores.status.values.tolist() == ["done", "done", "failed", "failed"]
    assert "workers died while they worked on" in str(scores.reason.sel(subject="03").values)
    assert json.loads((tmp_path / "out" / ".daskdecode" / "sub-03.json").read_text())["error"] == "ClusterError"


@pytest.mark.slow
def test_a_worker_that_is_killed_once_makes_no_difference(study_store, tmp_path, client):
    expected = decode_study(study_store, decoder(), labels=LABELS, permutations=49, progress=False)
    victim = next(iter(client.run(os.getpid).values()))
    shot = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({victim}, 9)"])
    try:
        scores = decode_study(study_store, decoder(), labels=LABELS, permutations=49, folder=tmp_path / "out", progress=False)
    finally:
        shot.wait()
    assert scores.identical(expected)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_study_is_gone_on_with(study_store, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "daskdecode.cli", "decode", study_store, "--labels", "face,cat", "--mask", "vt", "--output", folder]
    command += ["--estimator", "ridge_classifier"]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / ".daskdecode" / "sub-01.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "study_scores.tsv").exists()
    done = json.loads((folder / ".daskdecode" / "sub-01.json").read_text())
    assert all((folder / name).is_file() for name in done["files"])

    counting = CountingStore(LocalStore(study_store))
    scores = decode_study(counting, decoder(), labels=LABELS, folder=folder, progress=False)
    assert "sub-01" not in {key.split("/")[0] for key in counting.bold_reads}
    expected = decode_study(study_store, decoder(), labels=LABELS, folder=tmp_path / "whole", progress=False)
    assert scores.identical(expected)
    assert files_of(folder) == files_of(tmp_path / "whole")
