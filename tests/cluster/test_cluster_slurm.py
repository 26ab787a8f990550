"""Workers as jobs of a real Slurm: started, replaced, cancelled, and its own words where none comes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import dask
import pytest

import daskdecode as dd
from daskdecode.cluster import batch
from daskdecode.errors import ClusterError

pytestmark = pytest.mark.cluster


def test_workers_on_both_nodes_are_replaced_and_end_with_the_client(slurm, spec, until, monkeypatch):
    monkeypatch.setitem(dask.config.config["distributed"]["deploy"], "lost-worker-timeout", "1s")
    with dd.connect("slurm", n_workers=3, **spec) as client:
        client.wait_for_workers(3, timeout=60)
        nodes = client.run(lambda: os.environ["SLURMD_NODENAME"])
        assert len(set(nodes.values())) == 2
        before = slurm()
        assert len(before) == 3
        subprocess.run(["scancel", sorted(before)[0]], check=True)
        until(lambda: len(client.nthreads()) < 3)
        until(lambda: len(client.nthreads()) == 3)
        assert set(slurm()) - set(before)
    until(lambda: not slurm())


def test_a_worker_leaves_before_its_walltime_and_another_comes(slurm, spec, until, monkeypatch):
    monkeypatch.setattr(batch, "_lifetime", lambda _: ["--lifetime", "6s", "--lifetime-stagger", "1s"])
    monkeypatch.setitem(dask.config.config["distributed"]["deploy"], "lost-worker-timeout", "1s")
    with dd.connect("slurm", n_workers=1, walltime="01:00:00", **spec) as client:
        first = set(client.nthreads())
        held = client.submit(sum, [1, 2])
        until(lambda: held.done())
        until(lambda: set(client.nthreads()) - first)
        assert held.result(timeout=60) == 3
    until(lambda: not slurm())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queue": "nosuch"}, r"slurm refused a job: .*[Ii]nvalid partition"),
        ({"memory_limit": "900TB"}, r"slurm refused a job: .*Memory specification can not be satisfied"),
        ({"setup": ["echo no such module >&2", "exit 3"]}, r"Job \d+ has ended before its worker came: .*no such module"),
        ({"directives": ["--begin=now+1hour"], "timeout_s": 6}, r"within 6 s.*slurm says of job \d+: PENDING \(BeginTime\)"),
    ],
)
def test_no_worker_says_why_and_leaves_nothing(slurm, spec, until, options, said):
    with pytest.raises(ClusterError, match=said):
        dd.connect("slurm", n_workers=2, **(spec | options))
    assert dask.base.get_scheduler() is None
    until(lambda: not slurm())


def test_a_job_that_ended_before_its_worker_came_is_replaced(slurm, spec, until, monkeypatch, tmp_path):
    monkeypatch.setattr(batch, "_LOOK_S", 1.0)
    # The second job of all ends at once, as on a node that is out of order.
    setup = [f"mkdir {tmp_path}/first 2>/dev/null || mkdir {tmp_path}/second 2>/dev/null && test -e {tmp_path}/second && exit 3"]
    with dd.connect("slurm", n_workers=2, setup=setup, **spec) as client:
        client.wait_for_workers(2, timeout=60)
    assert (tmp_path / "second").exists()
    until(lambda: not slurm())


def test_tls_between_jobs(slurm, spec, until):
    with dd.connect("slurm", n_workers=1, tls=True, **spec) as client:
        assert all(address.startswith("tls://") for address in client.nthreads())
        assert client.submit(sum, [1, 2]).result() == 3
    until(lambda: not slurm())
    assert not list(Path(spec["log_folder"]).glob("*key*"))  # credentials go with the cluster
