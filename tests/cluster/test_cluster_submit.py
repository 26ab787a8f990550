"""Submissions on a real Slurm: what a local run gives, driver and workers ended by cancel, a driver that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import daskdecode as dd
from daskdecode.cli.main import main

pytestmark = pytest.mark.cluster


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command line in a folder with a site's file and a study."""
    monkeypatch.chdir(tmp_path)
    Path("site.yaml").write_text("kind: slurm\nn_workers: 2\nthreads_per_worker: 1\nmemory_limit: 1GB\ninterface: lo\n")
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


def _state(run, name):
    return json.loads(run("status", name, "--json").stdout)


def test_an_analysis_gives_what_it_gives_here(slurm, run, until, tmp_path):
    dd.simulate_study("bids", n_subjects=1, n_runs=3, shape=(7, 9, 8), n_blocks=1, signal=1.0)
    how = ["--estimator", "ridge_classifier", "--screening-percentile", "100", "--permutations", "1000", "--json"]
    analysis = ["convert", "bids", "s.zarr", "--mask", "none", "--", "decode", "s.zarr", "--output", "out; touch hacked", *how]
    submitted = run("submit", "--cluster", "site.yaml", "--", *analysis)
    assert submitted.exit_code == 0, submitted.output
    name = submitted.stdout.strip()
    until(lambda: _state(run, name)["state"] not in ("queued", "running"), 120)
    assert _state(run, name)["state"] == "done", run("logs", name).stdout
    log = run("logs", name).stdout
    there, _ = json.JSONDecoder().raw_decode(log[log.index("\n{") + 1 :])
    assert run("convert", "bids", "here.zarr", "--mask", "none").exit_code == 0
    here = json.loads(run("decode", "here.zarr", "--output", "here", *how).stdout)
    assert there["score"] == pytest.approx(here["score"], abs=1e-10)
    assert (there["pvalue"], there["n_permutations"]) == (here["pvalue"], 1000)
    assert there["accuracy"] == pytest.approx(here["accuracy"], abs=1e-10)
    assert {p.name for p in Path("out; touch hacked").rglob("*.nii.gz")} == {p.name for p in Path("here").rglob("*.nii.gz")}
    assert not Path("hacked").exists()
    until(lambda: not slurm())


def _computing(run, until, slurm):
    """Submit something that takes long enough, and wait until its workers are there."""
    dd.simulate_study("bids", n_subjects=1, n_runs=3, shape=(7, 9, 8), n_blocks=1, signal=1.0)
    dd.convert("bids", "s.zarr", mask="none", progress=False)
    submitted = run("submit", "--cluster", "site.yaml", "--", "decode", "s.zarr", "--output", "out", "--cv", "30")
    name = submitted.stdout.strip()
    until(lambda: len(slurm()) == 3)
    return name


def test_cancel_ends_the_driver_and_its_workers(slurm, run, until):
    name = _computing(run, until, slurm)
    assert run("cancel", name).exit_code == 0
    until(lambda: not slurm())
    assert _state(run, name)["state"] == "cancelled"


def test_ctrl_c_is_130_one_line_and_ends_workers(slurm, run, until):
    dd.simulate_study("bids", n_subjects=1, n_runs=3, shape=(7, 9, 8), n_blocks=1, signal=1.0)
    dd.convert("bids", "s.zarr", mask="none", progress=False)
    command = [sys.executable, "-m", "daskdecode.cli", "decode", "s.zarr", "--output", "out", "--cluster", "site.yaml", "--cv", "30"]
    process = subprocess.Popen([*command, "--no-progress"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: list(slurm().values()).count("RUNNING") == 2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert [line for line in stderr.splitlines() if line][-1].startswith("Error: Interrupted.")
    assert not stdout
    until(lambda: not slurm())


def test_a_driver_that_is_killed_is_lost_and_its_workers_end(slurm, run, until):
    name = _computing(run, until, slurm)
    # The process itself: what scancel kills gets SIGTERM first, and has seconds to say that it ends.
    os.kill(json.loads((Path(_state(run, name)["folder"]) / "started.json").read_text())["pid"], signal.SIGKILL)
    until(lambda: _state(run, name)["state"] == "lost")
    until(lambda: not slurm())  # workers end by themselves once their scheduler has gone
