"""Batch systems, without one: what jobs are asked for, and what is read from the systems' answers."""

from __future__ import annotations

import importlib
import subprocess
import sys

import dask
import pytest

import daskdecode as dd
from daskdecode.cluster import batch, queues
from daskdecode.cluster.spec import read_spec
from daskdecode.errors import ClusterSpecError

pytest.importorskip("dask_jobqueue")
SIZE = {"threads_per_worker": 2, "memory_limit": "8GB"}


def _script(kind, **options):
    """The job script that dask-jobqueue makes of what we tell it."""
    return _script_of(read_spec(kind, {**SIZE, **options}))


def _script_of(spec):
    job = getattr(importlib.import_module(f"dask_jobqueue.{spec.kind}"), queues.SYSTEMS[spec.kind].job)
    told = batch.job_options(spec)
    told.pop("shared_temp_directory")
    return job(scheduler="tcp://s:1", name="w", **told).job_script()


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("slurm", ["#SBATCH -p long", "#SBATCH -A grant-7", "#SBATCH --cpus-per-task=2", "#SBATCH -t 10:00:00", "#SBATCH --mem=8G"]),
        ("pbs", ["#PBS -q long", "#PBS -A grant-7", "#PBS -l walltime=10:00:00", "#PBS -l select=1:ncpus=2:mem=7630MB"]),
        ("sge", ["#$ -q long", "#$ -P grant-7", "#$ -l h_rt=10:00:00"]),
        ("lsf", ["#BSUB -q long", '#BSUB -P "grant-7"', "#BSUB -n 2", "#BSUB -W 10:00"]),
    ],
)
def test_a_job_of_each_system(kind, lines, tmp_path):
    logs = tmp_path / "logs"
    setup = ["module load python"]
    script = _script(
        kind, queue="long", account="grant-7", walltime="10:00:00", setup=setup, log_folder=str(logs), local_folder="$TMPDIR/dask"
    )
    for line in [*lines, *setup]:
        assert line in script.splitlines()
    assert logs.is_dir()
    command = script.splitlines()[-1]
    assert command.startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://s:1 ")
    assert "--nthreads 2 --memory-limit 7.45GiB" in command
    assert "--local-directory $TMPDIR/dask" in command
    # 10 h less a margin, the stagger counted on both sides, ends before the walltime does
    assert "--lifetime 34200s --lifetime-stagger 600s" in command
    assert "--no-dashboard --dashboard-address 127.0.0.1:0" in command


@pytest.mark.parametrize("walltime", ["10:00:00", "100:00:00", "01:30:00", "2-00:00:01"])
@pytest.mark.parametrize("of_site", [False, True])
def test_every_system_has_the_time_that_is_meant(walltime, of_site, tmp_path):
    """In a file without quotes, and in Dask's jobqueue.yaml: the header of the job script, and when the worker leaves."""
    days, hours, minutes, seconds = (int(part) for part in ([] if "-" in walltime else ["0"]) + walltime.replace("-", ":").split(":"))
    in_all = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    clock = f"{24 * days + hours:02d}:{minutes:02d}:{seconds:02d}"
    rounded = f"{24 * days + hours:02d}:{minutes + (seconds > 0):02d}"
    expected = {
        "slurm": f"#SBATCH -t {clock}",
        "pbs": f"#PBS -l walltime={clock}",
        "sge": f"#$ -l h_rt={clock}",
        "lsf": f"#BSUB -W {rounded}",
    }
    for kind in (*expected, "htcondor"):
        path = tmp_path / f"{kind}.yaml"
        said = "" if of_site else f"walltime: {walltime}\n"
        path.write_text(f"kind: {kind}\nthreads_per_worker: 2\nmemory_limit: 8GB\nlog_folder: {tmp_path}\n{said}")
        if of_site and kind in ("htcondor", "lsf"):  # which have no time there, or one without seconds
            continue
        with dask.config.set({f"jobqueue.{kind}.walltime": walltime} if of_site else {}):
            lines = _script_of(read_spec(path, {})).splitlines()
        if kind in expected:
            assert expected[kind] in lines
        spread = min(600, in_all // 20)
        assert any(f"--lifetime {in_all - 3 * spread}s" in line for line in lines)


def test_lsf_of_a_site_has_hours_and_minutes(tmp_path):
    with dask.config.set({"jobqueue.lsf.walltime": "10:00"}):
        script = _script("lsf", log_folder=str(tmp_path))
    assert "#BSUB -W 10:00\n" in script
    assert "--lifetime 34200s" in script
    with dask.config.set({"jobqueue.lsf.walltime": 600}), pytest.raises(ClusterSpecError, match=r"jobqueue.yaml is 600.*Give walltime="):
        _script("lsf", log_folder=str(tmp_path))


def test_a_job_of_htcondor(tmp_path):
    script = _script("htcondor", setup=["module load python"], walltime="01:00:00", log_folder=str(tmp_path))
    assert "MY.DaskWorkerCores = 2" in script
    assert "MY.DaskWorkerDisk = 4000000000" in script
    assert "module load python; " in script
    assert "--lifetime 3060s" in script


@pytest.mark.parametrize("walltime", [300, 3600, 86400, 10 * 86400])
def test_workers_close_before_the_walltime_with_time_to_spare(walltime):
    _, lifetime, _, stagger = batch._lifetime(walltime)
    latest = int(lifetime[:-1]) + int(stagger[:-1])
    assert walltime - latest >= min(600, walltime // 20)
    assert int(lifetime[:-1]) - int(stagger[:-1]) > walltime / 2


def test_a_site_s_jobqueue_yaml_is_heeded(tmp_path):
    config = {"jobqueue": {"slurm": {"cores": 3, "memory": "5GB", "queue": "site", "walltime": "02:00:00", "log-directory": str(tmp_path)}}}
    with dask.config.set(config):
        told = batch.job_options(read_spec("slurm", {}))
        assert (told["cores"], told["memory"], told["log_directory"]) == (3, "5GB", str(tmp_path))
        assert "6120s" in told["worker_extra_args"]
        assert batch.job_options(read_spec("slurm", {"threads_per_worker": 1}))["cores"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "threads_per_worker= and memory_limit="),
        ({"threads_per_worker": 2}, "memory_limit="),
    ],
)
def test_the_size_of_a_job_has_to_be_said(options, said):
    with pytest.raises(ClusterSpecError, match=said):
        batch.job_options(read_spec("slurm", options))


def test_ctrl_c_means_what_it_did():
    pytest.importorskip("dask_jobqueue")
    code = "from signal import SIGINT, getsignal; from daskdecode.cluster import batch; before = getsignal(SIGINT); "
    code += "batch.require('slurm', 'dask_jobqueue', 'jobqueue'); assert getsignal(SIGINT) is before, getsignal(SIGINT)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_for_logs_that_job_scripts_cannot_carry(tmp_path, monkeypatch):
    (tmp_path / "my data").mkdir()
    monkeypatch.chdir(tmp_path / "my data")
    with pytest.raises(ClusterSpecError, match=r"my data/daskdecode-logs: expected a path without spaces.*log_folder="):
        batch.job_options(read_spec("slurm", SIZE))


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(batch.shutil, "which", lambda _: None)
    with pytest.raises(ClusterSpecError, match="bsub is not here"):
        dd.connect("lsf", **SIZE)
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(ClusterSpecError, match=r'pip install "daskdecode\[jobqueue\]"'):
        dd.connect("slurm", **SIZE)


# Written from the formats as known, not copied from runs: they test what is read out of such text, not the systems.
_PBS = """Job Id: 12.server
    Job_Name = daskdecode
    job_state = Q
    comment = Not Running: Insufficient amount of resource: ncpus (R: 6
\t4)

Job Id: 13.server
    job_state = F
"""
_SGE = """job-ID  prior   name       user         state submit/start at     queue                          slots ja-task-ID
-----------------------------------------------------------------------------------------------------------------
     12 0.00000 daskdecode ann          qw    11/22/2026 12:00:00                                    1
     13 0.55500 daskdecode ann          r     11/22/2026 12:00:00 all.q@node1                        1
==============================================================
job_number:                 12
scheduling info:            cannot run in queue "all.q" because it offers only hc:slots=0
"""


@pytest.mark.parametrize(
    ("kind", "output", "ids", "expected"),
    [
        ("slurm", "12|PENDING|QOSMaxCpuPerUserLimit\n13|COMPLETED|None\n14|RUNNING|None\n", ["12", "13", "14"],
         {"12": "PENDING (QOSMaxCpuPerUserLimit)", "14": "RUNNING"}),
        ("pbs", _PBS, ["12.server", "13.server"], {"12.server": "Q (Not Running: Insufficient amount of resource: ncpus (R: 64))"}),
        ("pbs", _PBS, ["12", "13"], {"12": "Q (Not Running: Insufficient amount of resource: ncpus (R: 64))"}),
        ("sge", _SGE, ["12", "13"], {"12": 'qw (cannot run in queue "all.q" because it offers only hc:slots=0)', "13": "r"}),
        ("lsf", "12|PEND|New job is waiting for scheduling;\n13|DONE|\n14|RUN|\n", ["12", "13", "14"],
         {"12": "PEND (New job is waiting for scheduling;)", "14": "RUN"}),
        ("htcondor", "12.0|1|\n13.0|5|Out of disk\n14.0|4|\n", ["12.0", "13.0", "14.0"], {"12.0": "idle", "13.0": "held (Out of disk)"}),
    ],
)  # fmt: skip
def test_states_are_read_from_what_systems_print(kind, output, ids, expected, monkeypatch):
    system = queues.SYSTEMS[kind]
    outputs = iter([output, *[""] * 5])
    asked = []

    def answer(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, stdout=next(outputs), stderr="some jobs are not known")

    monkeypatch.setattr(queues.subprocess, "run", answer)
    assert {job: str(state) for job, state in queues.job_states(system, ids).items()} == expected
    assert all(job in " ".join(asked[-1]) for job in ids)


def test_a_system_that_does_not_answer_says_nothing(monkeypatch):
    def silent(command, **_):
        return subprocess.CompletedProcess(
            command, 1, stdout="", stderr="squeue: error: Unable to contact slurm controller (connect failure)"
        )

    monkeypatch.setattr(queues.subprocess, "run", silent)
    assert queues.job_states(queues.SYSTEMS["slurm"], ["12"]) is None
    assert queues.job_states(queues.SYSTEMS["slurm"], []) == {}
