"""connect(): what is started is whole, listens where it should, and ends with its client."""

from __future__ import annotations

import gc
import os
import socket
import sys

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

import daskdecode as dd
from daskdecode.cluster import local, versions
from daskdecode.cluster.spec import read_spec
from daskdecode.errors import ClusterError, ClusterSpecError


def _listening():
    """Addresses at which this process and its children listen."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def test_threads_are_this_process_and_end_with_the_client():
    with dd.connect("threads", n_workers=3) as client:
        assert client.submit(os.getpid).result() == os.getpid()
        assert list(client.nthreads().values()) == [3]
        assert dask.base.get_scheduler() == client.get
        assert _listening() == {"127.0.0.1"}
        cluster = client.cluster
    assert cluster.status.name == "closed"
    assert dask.base.get_scheduler() is None


def test_clients_that_overlap_leave_dask_as_it_was():
    first = dd.connect("threads", n_workers=1)
    second = dd.connect("threads", n_workers=1)
    first.close()
    assert dask.delayed(sum)([1, 2]).compute() == 3
    second.close()
    assert dask.delayed(sum)([1, 2]).compute() == 3
    assert dask.config.get("scheduler", None) is None


def test_processes_compute_listen_on_loopback_and_are_gone_afterwards():
    client = dd.connect("local", n_workers=2, threads_per_worker=1, memory_limit="700MB")
    try:
        pids = set(client.run(os.getpid).values())
        assert len(pids) == 2
        assert os.getpid() not in pids
        limits = client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)
        assert set(limits.values()) == {700_000_000}
        assert _listening() == {"127.0.0.1"}
        assert dask.delayed(np.sum)([1, 2]).compute() == 3
    finally:
        client.close()
    _, alive = psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], timeout=10)
    assert not alive


@pytest.mark.parametrize(
    ("n_cores", "memory_nbytes", "asked", "expected"),
    [
        (4, 2**36, (0, 0), (4, 1)),
        (4, 3 * 2**30, (0, 0), (3, 1)),  # less than 1 GiB a process otherwise
        (64, 2**29, (0, 0), (1, 64)),
        (8, 2**36, (2, 0), (2, 4)),
        (8, 2**36, (0, 3), (2, 3)),
        (2, 2**36, (3, 0), (3, 1)),
        (2, 2**36, (3, 5), (3, 5)),
    ],
)
def test_processes_suit_cores_and_memory(monkeypatch, n_cores, memory_nbytes, asked, expected):
    monkeypatch.setattr(local, "CPU_COUNT", n_cores)
    monkeypatch.setattr(local, "MEMORY_LIMIT", memory_nbytes)
    assert local.sizes(*asked) == expected


def test_a_running_scheduler_is_used_and_left_running():
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster:
        with dd.connect(cluster.scheduler_address) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        with Client(cluster.scheduler_address, set_as_default=False) as again:
            assert again.submit(sum, [3, 4]).result() == 7


def test_no_scheduler_at_an_address():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    with pytest.raises(ClusterError, match=rf"No scheduler answers at {address} within 0.5 s"):
        dd.connect(address, timeout_s=0.5)
    assert dask.base.get_scheduler() is None


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("local", {"dashboard": "192.0.2.1:8787"}, r"\(local\): .*annot assign requested address.* dashboard="),
        ("slurm", {"host": "192.0.2.1"}, r"\(slurm\): .*annot assign requested address.* host="),
        ("slurm", {"interface": "ib99"}, r"\(slurm\): 'ib99' is not a valid network interface.* interface="),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # distributed leaves a socket to the garbage collector
def test_an_address_that_is_not_of_this_machine_is_named(spec, options, said, monkeypatch, tmp_path):
    if spec == "slurm":
        pytest.importorskip("dask_jobqueue")
        monkeypatch.setattr("daskdecode.cluster.batch.shutil.which", lambda command: f"/usr/bin/{command}")  # no job is submitted
        options |= {"threads_per_worker": 1, "memory_limit": "1GB", "log_folder": str(tmp_path)}
    with pytest.raises(ClusterError, match=said):
        dd.connect(spec, **options)
    gc.collect()


def test_a_scheduler_without_workers_is_named_after_the_time_that_was_given():
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(ClusterError, match=r"No worker came within 1 s \(address\).*dask worker"),
    ):
        dd.connect(cluster.scheduler_address, timeout_s=1)
    assert dask.base.get_scheduler() is None


def test_tls_encrypts_and_keeps_others_out():
    with dd.connect("local", n_workers=1, threads_per_worker=1, tls=True) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        address = client.scheduler_info()["address"]
        assert address.startswith("tls://127.0.0.1")
        with pytest.raises(ClusterSpecError, match="needs the credentials of its scheduler"):
            dd.connect(address)
        with pytest.raises(ClusterError, match="No scheduler answers"):
            dd.connect(address.replace("tls://", "tcp://"), timeout_s=1)


def test_tls_with_files_of_one_s_own(tmp_path):
    from distributed.security import Security

    made = Security.temporary()
    files = {}
    for name, content in {"ca_file": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}.items():
        (tmp_path / name).write_text(content)
        files[name] = str(tmp_path / name)
    with dd.connect("local", n_workers=1, threads_per_worker=1, tls=files) as client:
        address = client.scheduler_info()["address"]
        with dd.connect(address, tls=files) as second:
            assert second.submit(sum, [1, 2]).result() == 3
    with pytest.raises(ClusterSpecError, match=r"key is .*gone.* there is no such file"):
        dd.connect("local", tls=files | {"key": str(tmp_path / "gone")})


def test_workers_with_other_versions(monkeypatch):
    told = {"packages": {"python": "3.11.7", "daskdecode": "0.1", "dask": "1", "distributed": "1", "numpy": "2.1"}, "host": {}}

    class Asked:
        def __init__(self, **there):
            self.there = there

        def get_versions(self, packages):
            return {"client": told, "scheduler": told, "workers": {"tcp://w:1": {**told, "packages": told["packages"] | self.there}}}

    versions.check_versions(Asked())  # equal: no warning, no error
    versions.check_versions(Asked(python="3.11.9"))
    with pytest.raises(ClusterError, match=r"daskdecode missing \(here 0\.1\) on tcp://w:1"):
        versions.check_versions(Asked(daskdecode=None))
    with pytest.raises(ClusterError, match=r"python 3\.12 \(here 3\.11\)"):
        versions.check_versions(Asked(python="3.12.1"))
    with pytest.warns(UserWarning, match=r"numpy 1\.26 \(here 2\.1\) on tcp://w:1"):
        versions.check_versions(Asked(numpy="1.26"))


def test_versions_are_compared_on_connecting_and_nothing_is_left(monkeypatch):
    monkeypatch.setattr(versions, "_MUST_AGREE", ("python", "daskdecode"))
    real = Client.get_versions

    def other(self, **kwargs):
        found = real(self, **kwargs)
        for worker in found["workers"].values():
            worker["packages"] = worker["packages"] | {"daskdecode": "9.9"}
        return found

    monkeypatch.setattr(Client, "get_versions", other)
    with pytest.raises(ClusterError, match=r"daskdecode 9\.9 \(here"):
        dd.connect("threads")
    assert dask.base.get_scheduler() is None


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    import subprocess

    script = tmp_path / "analysis.py"
    script.write_text("import daskdecode as dd\nwith dd.connect('local', n_workers=1, timeout_s=30) as client:\n    print('done')\n")
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0
    assert "if __name__ == '__main__':" in ended.stderr


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("slrum", {}, "Did you mean 'slurm'"),
        ("local", {"n_worker": 2}, "Did you mean 'n_workers'"),
        ("local", {"queue": "long"}, "queue means nothing to a cluster of the kind 'local'"),
        ("local", {"n_workers": 0}, "n_workers is 0: expected a whole number of at least 1"),
        ("local", {"n_workers": True}, "n_workers is True"),
        ("local", {"n_workers": (3, 1)}, "the fewest and the most"),
        ("threads", {"memory_limit": "1GB"}, "memory_limit means nothing"),
        ("local", {"memory_limit": "lots"}, "expected a size such as 4GB"),
        ("local", {"dashboard": "8787"}, "':8787'"),
        ("local", {"tls": {"cert": "a"}}, "ca_file, cert and key"),
        ("local", {"timeout_s": float("nan")}, "timeout_s is nan"),
        ("slurm", {"walltime": "04:00"}, "HH:MM:SS"),
        ("slurm", {"walltime": 600}, "walltime is 600: expected .*HH:MM:SS.*means other times to other batch systems"),
        ("slurm", {"walltime": "00:01:00"}, "at least five minutes"),
        ("slurm", {"queue": "a\n#SBATCH --exclusive"}, "queue is"),
        ("slurm", {"queue": "a b"}, "queue is"),
        ("slurm", {"directives": ["-q a\nrm -r /"]}, "a list of lines|text on one line"),
        ("slurm", {"log_folder": "my logs"}, "a path without spaces"),
        ("slurm", {"python": "/x/$(reboot)/python"}, "a path without spaces"),
        ("slurm", {"disk": "1GB"}, "only to htcondor"),
        ("nowhere.yaml", {}, "No such file"),
        (3, {}, "found a int"),
    ],
)
def test_what_is_not_understood_is_refused_before_anything_starts(spec, options, said):
    with pytest.raises(ClusterSpecError, match=said):
        read_spec(spec, options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: slurm\nqueu: long\n", r"there is no option 'queu'.*Did you mean 'queue'"),
        ("kind: slrum\n", "Did you mean 'slurm'"),
        ("queue: long\n", "does not say which kind"),
        ("- slurm\n", "does not say which kind"),
        ("kind: [slurm\n", "is not YAML"),
        ("kind: slurm\nqueue: short\nqueue: long\n", "is not YAML: queue is given twice in .*line 3"),
        ("kind: [slurm]\n", r"no kind of cluster \['slurm'\]"),
        ("kind: slurm\nmemory_limit: 16\n", "memory_limit is 16: expected a size such as 4GB .a number alone is bytes"),
        ("kind: address\n", "needs address:"),
        ("kind: slurm\nn_workers: many\n", "n_workers is 'many'"),
        ("kind: lsf\nwalltime: 10:00\n", "walltime is '10:00': expected .*HH:MM:SS"),
        ("kind: slurm\nwalltime: 600\n", "walltime is 600: expected .*HH:MM:SS"),
        ("kind: slurm\ndriver: {walltime: 10:00}\n", "'10:00'.*expected .*HH:MM:SS.*as its walltime"),
        ("kind: slurm\ntimeout_s: 10:00\n", "timeout_s is '10:00': expected a number"),
    ],
)
def test_a_file_that_is_not_understood_is_named(tmp_path, text, said):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ClusterSpecError, match=said) as caught:
        read_spec(path, {})
    assert str(path) in str(caught.value)


def test_a_file_is_read_and_what_is_said_beside_it_is_stronger(tmp_path):
    path = tmp_path / "site.yml"
    path.write_text("kind: slurm\nqueue: long\nwalltime: 10:00:00\nn_workers: [0, 20]\nmemory_limit: 16GB\naccount:\n")
    spec = read_spec(str(path), {"queue": "short", "account": None})
    assert spec.kind == "slurm"
    # 10:00:00 without quotes is a number in base 60 to YAML 1.1
    assert spec.options == {"queue": "short", "walltime": 36000, "n_workers": (0, 20), "memory_limit": 16 * 10**9}
    assert spec.workers(4) == (0, 20)
    assert read_spec("slurm", {"walltime": "1-02:00:00"}).options == {"walltime": 93600}
    assert read_spec("slurm", {}).workers(4) == (4, 4)


def test_a_file_connects(tmp_path):
    path = tmp_path / "laptop.yaml"
    path.write_text("kind: threads\nn_workers: 2\n")
    with dd.connect(path) as client:
        assert list(client.nthreads().values()) == [2]
