"""submit, status, logs, cancel: with commands of a batch system that only write down what they are given."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daskdecode.cli.command import Group
from daskdecode.cluster.spec import read_spec
from daskdecode.cluster.submit import begin
from daskdecode.engine.workers import active_client

pytest.importorskip("dask_jobqueue")

NASTY = "$(touch hacked); `touch hacked` && 'touch' \"hacked\" #\nnext"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with a site's file, and a Slurm that runs nothing; returns a function that says what it then answers of the job."""
    commands = tmp_path / "bin"
    commands.mkdir()
    scripts = {
        "sbatch": 'cp "$1" "$BATCH/script"; test -e "$BATCH/refuse" && { echo "sbatch: error: no such account" >&2; exit 1; }; '
        "echo Submitted batch job 77",
        "squeue": 'cat "$BATCH/queue" 2>/dev/null || { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }',
        "scancel": 'echo "$@" >> "$BATCH/cancelled"; echo -n > "$BATCH/queue"',
    }
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("BATCH", str(tmp_path))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "site.yaml").write_text(
        "kind: slurm\nthreads_per_worker: 2\nmemory_limit: 2GB\nwalltime: 01:00:00\nsetup: [module load python]\n"
        "driver: {memory_limit: 1GB, threads_per_worker: 1, walltime: 30:00:00}\n"
    )

    def queue(text):
        (tmp_path / "queue").write_text(text)

    queue("77|PENDING|Resources\n")
    return queue


def _state(run, name):
    return json.loads(run("status", name, "--json").stdout)


def test_a_submission_from_queue_to_results(run, site, study, masks, tmp_path):
    commands = ["convert", study, "s.zarr", *masks, "--", "decode", "s.zarr", "--subject", "01", "--mask", "vt", "--output", "out"]
    result = run("submit", "--cluster", "site.yaml", "--n-workers", "1-3", "--", *commands)
    assert result.exit_code == 0, result.output
    name = result.stdout.strip()
    script = (tmp_path / "script").read_text()
    assert "#SBATCH --cpus-per-task=1\n" in script
    assert "#SBATCH --mem=954M\n" in script
    assert "#SBATCH -t 30:00:00\n" in script
    assert "\nmodule load python\nexec " in script
    assert _state(run, name)["state"] == "queued"
    assert _state(run, name)["detail"] == "PENDING (Resources)"
    folder = Path("daskdecode-jobs") / name
    kept = (folder / "cluster.yaml").read_text()
    assert "kind: slurm" in kept
    assert "n_workers:\n- 1\n- 3\n" in kept
    asked = read_spec("site.yaml", {}).options
    assert asked.items() <= read_spec(folder / "cluster.yaml", {}).options.items()
    assert (asked["walltime"], asked["driver"]["walltime"]) == (3600, 108000)

    site("77|RUNNING|None\n")
    (folder / "cluster.yaml").write_text("kind: threads\nn_workers: 1\n")  # the test has no nodes
    driven = run("driver", folder)
    assert driven.exit_code == 0, driven.output
    assert Path("out").is_dir()
    site("")
    found = _state(run, name)
    assert (found["state"], found["exit_status"]) == ("done", 0)
    assert found["submitted"] <= found["started"] <= found["ended"]
    assert name in run("status").stdout


def test_names_never_reach_a_shell(run, site, tmp_path):
    result = run("submit", "--cluster", "site.yaml", "--", "decode", NASTY, "--output", NASTY)
    assert result.exit_code == 0, result.output
    script = (tmp_path / "script").read_text()
    assert "hacked" not in script
    subprocess.run(["bash", "-n", str(tmp_path / "script")], check=True)
    job = json.loads((Path("daskdecode-jobs") / result.stdout.strip() / "job.json").read_text())
    assert job["commands"] == [["decode", NASTY, "--output", NASTY]]


def test_a_failing_command_ends_it_and_is_told(run, site):
    (Path("out")).mkdir()
    name = run("submit", "--cluster", "site.yaml", "--", "verify", "nowhere.zarr", "--", "convert", "a", "b").stdout.strip()
    folder = Path("daskdecode-jobs") / name
    (folder / "cluster.yaml").write_text("kind: threads\n")
    driven = run("driver", folder)
    assert driven.exit_code == 2
    (folder / "driver.log").write_text(driven.stderr + "distributed.core - INFO - closing.\n")
    site("")
    found = _state(run, name)
    assert found["state"] == "failed"
    assert "exit status 2: Error: " in found["detail"]
    assert "nowhere.zarr" in found["detail"]
    assert "$ daskdecode verify" in run("logs", name).stdout
    assert "$ daskdecode convert" not in driven.stderr


def test_subjects_that_fail_do_not_end_it_but_a_store_that_differs_does(run, site, study, masks, tmp_path):
    bids = shutil.copytree(study, tmp_path / "bids")
    image = bids / "sub-02" / "func" / "sub-02_task-objectviewing_run-03_bold.nii.gz"
    image.write_bytes(image.read_bytes()[:-900])
    commands = [["convert", str(bids), "s.zarr", *masks], ["decode", "s.zarr", "--mask", "vt", "--output", "out", "--json"]]
    name = run("submit", "--cluster", "site.yaml", "--", *commands[0], "--", *commands[1]).stdout.strip()
    folder = Path("daskdecode-jobs") / name
    (folder / "cluster.yaml").write_text("kind: threads\n")
    driven = run("driver", folder)
    assert driven.exit_code == 1
    assert json.loads(driven.stdout[driven.stdout.index("\n{") :])["n_done"] == 1
    assert Path("out/sub-01").is_dir()
    assert driven.stderr.splitlines()[-1] == "Some subjects failed (convert, decode): the log names them. The others are done."
    (folder / "driver.log").write_text(driven.stdout + driven.stderr)
    site("")
    assert _state(run, name)["state"] == "failed"
    assert _state(run, name)["detail"].startswith("exit status 1: Some subjects failed")

    name = run("submit", "--cluster", "site.yaml", "--", "verify", "s.zarr", "--", *commands[1]).stdout.strip()
    array = next(Path("s.zarr/sub-01").rglob("run-01/bold/c/0/0"))
    array.unlink()
    folder = Path("daskdecode-jobs") / name
    (folder / "cluster.yaml").write_text("kind: threads\n")
    driven = run("driver", folder)
    assert driven.exit_code == 1
    assert "$ daskdecode decode" not in driven.stderr


def test_a_driver_that_vanished_is_lost_and_one_that_cannot_be_asked_is_unknown(run, site, tmp_path):
    name = run("submit", "--cluster", "site.yaml", "--", "verify", "s.zarr").stdout.strip()
    (tmp_path / "queue").unlink()
    assert _state(run, name)["state"] == "unknown"
    site("")
    assert _state(run, name)["state"] == "lost"
    assert "walltime" in _state(run, name)["detail"]
    assert run("logs", name).stderr == "Nothing was logged yet.\n"


def test_the_same_is_not_submitted_twice(run, site, tmp_path, monkeypatch):
    asked = ["submit", "--cluster", "site.yaml", "--", "decode", "s.zarr", "--output"]
    name = run(*asked, "out").stdout.strip()
    again = run(*asked, "out")
    assert again.exit_code == 2
    assert f"as {name}, and is queued (PENDING (Resources); job 77)" in again.stderr
    assert f"daskdecode cancel {name}" in again.stderr
    assert len(list(Path("daskdecode-jobs").iterdir())) == 1
    site("77|RUNNING|None\n")
    begin(Path("daskdecode-jobs") / name)
    assert f"as {name}, and is running (on " in run(*asked, "out").stderr
    assert run(*asked, "other").exit_code == 0
    jobs = Path("daskdecode-jobs").absolute()
    (tmp_path / "elsewhere").mkdir()
    Path(tmp_path / "elsewhere" / "site.yaml").write_bytes(Path("site.yaml").read_bytes())
    with monkeypatch.context() as moved:
        moved.chdir(tmp_path / "elsewhere")  # there it is another study
        assert run(*asked[:3], "--jobs", jobs, *asked[3:], "out").exit_code == 0
    site("")  # it has ended, however
    assert run(*asked, "out").exit_code == 0


def test_of_two_at_the_same_moment_one_is_refused(site, tmp_path):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("#!/bin/sh\n", "#!/bin/sh\nsleep 1\n"))
    command = [sys.executable, "-m", "daskdecode.cli", "submit", "--cluster", "site.yaml", "--", "decode", "s.zarr", "--output", "out"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[1] for process in both)
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert said[0].startswith("Error: The same was submitted at ")
    assert len(list(Path("daskdecode-jobs").iterdir())) == 1


def test_cancel(run, site, tmp_path):
    name = run("submit", "--cluster", "site.yaml", "--", "verify", "s.zarr").stdout.strip()
    assert "cancelled" in run("cancel", name).stdout
    assert (tmp_path / "cancelled").read_text() == "77\n"
    assert _state(run, name)["state"] == "cancelled"
    assert run("cancel", name).exit_code == 0  # again: nothing to do
    assert (tmp_path / "cancelled").read_text() == "77\n"


@pytest.mark.parametrize("where", [["--scheduler=threads"], ["--n-workers", "1"]])
def test_a_command_that_says_itself_where_to_work_works_there_and_the_others_on_the_workers(run, site, study, masks, monkeypatch, where):
    """The workers are there for the conversion and the verification, and end before what lies between."""
    commands = ["convert", study, "s.zarr", *masks, "--", "verify", "s.zarr", *where, "--", "verify", "s.zarr"]
    name = run("submit", "--cluster", "site.yaml", "--", *commands).stdout.strip()
    folder = Path("daskdecode-jobs") / name
    assert json.loads((folder / "job.json").read_text())["workers"] == [True, False, True]
    (folder / "cluster.yaml").write_text("kind: threads\nn_workers: 1\n")  # the test has no nodes
    there = []
    whole = Group.main

    def main(self, args=None, *rest, **kwargs):
        there.append((args[0], active_client() is not None))
        return whole(self, args, *rest, **kwargs)

    monkeypatch.setattr(Group, "main", main)
    driven = run("driver", folder)
    assert driven.exit_code == 0, driven.output
    assert there[-3:] == [("convert", True), ("verify", False), ("verify", True)]


def test_values_are_not_taken_for_options(run, site):
    name = run("submit", "--cluster", "site.yaml", "--", "decode", "s.zarr", "--output", "--scheduler").stdout.strip()
    assert json.loads((Path("daskdecode-jobs") / name / "job.json").read_text())["workers"] == [True]


@pytest.mark.parametrize("content", [None, "", '{"commands": []}', "[]"])
def test_a_job_that_does_not_say_what_to_do_ends_with_a_line_and_hides_no_other(run, site, content):
    name, broken = (run("submit", "--cluster", "site.yaml", "--", "verify", f"{s}.zarr").stdout.strip() for s in "st")
    folder = Path("daskdecode-jobs") / broken
    (folder / "job.json").unlink()
    if content is not None:
        (folder / "job.json").write_text(content)
    driven = run("driver", folder)
    assert driven.exit_code == 2
    assert "job.json" in driven.stderr
    assert driven.stderr.count("\n") == 1
    assert json.loads((folder / "ended.json").read_text())["exit_status"] == 2
    found = run("status")
    assert found.exit_code == 0, found.stderr
    assert f"{name}  queued" in found.stdout
    if content is not None:
        assert f"{broken}  unknown" in found.stdout
        assert run("cancel", broken).exit_code == 2


def test_a_submission_that_was_cut_off_runs_and_is_told(run, site, monkeypatch):
    """Killed between the batch system's answer and writing it down."""
    name = run("submit", "--cluster", "site.yaml", "--", "verify", "nowhere.zarr").stdout.strip()
    folder = Path("daskdecode-jobs") / name
    (folder / "batch.json").unlink()
    (folder / "cluster.yaml").write_text("kind: threads\nn_workers: 1\n")
    assert _state(run, name)["state"] == "unknown"
    assert "slurm may have it" in _state(run, name)["detail"]
    refused = run("cancel", name)
    assert refused.exit_code == 2
    assert "slurm's own command" in refused.stderr
    assert run("driver", folder).exit_code == 2
    assert _state(run, name)["state"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--", "verify", "s.zarr"], "--cluster FILE or --scheduler slurm"),
        (["--cluster", "site.yaml", "--scheduler", "slurm", "--", "verify", "s"], "one of them"),
        (["--scheduler", "local", "--", "verify", "s.zarr"], "Only a batch system takes a whole analysis"),
        (["--cluster", "site.yaml", "--", "decode", "s.zarr"], "Missing option '--output'"),
        (["--cluster", "site.yaml", "--", "decode", "s.zarr", "--output", "o", "--lables", "face"], "--labels"),
        (["--cluster", "site.yaml", "--", "info", "s.zarr"], "'info' is none that computes"),
        (["--cluster", "site.yaml", "--", "verify", "s.zarr", "--"], "one is empty"),
        (["--cluster", "site.yaml", "--jobs", "my jobs", "--", "verify", "s.zarr"], "Give --jobs"),
        (["--cluster", "site.yaml"], "ARGS"),
    ],
)
def test_refusals_leave_nothing(run, site, arguments, said):
    result = run("submit", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not list(Path().glob("*jobs*"))


def test_a_refusal_of_the_batch_system_is_quoted_and_leaves_nothing(run, site, tmp_path):
    (tmp_path / "refuse").touch()
    result = run("submit", "--cluster", "site.yaml", "--", "verify", "s.zarr")
    assert result.exit_code == 2
    assert "slurm refused the job: sbatch: error: no such account" in result.stderr
    assert not Path("daskdecode-jobs").exists()
    Path("daskdecode-jobs").mkdir()
    assert run("submit", "--cluster", "site.yaml", "--", "verify", "s.zarr").exit_code == 2
    assert not list(Path("daskdecode-jobs").iterdir())  # what was there before stays


def test_an_unknown_submission_is_named_with_those_that_are_known(run, site):
    name = run("submit", "--cluster", "site.yaml", "--", "verify", "s.zarr").stdout.strip()
    for command in ("status", "logs", "cancel"):
        result = run(command, name[:-1])
        assert result.exit_code == 2
        assert f"Did you mean '{name}'" in result.stderr
    assert run("status", "../" + name).exit_code == 2


@pytest.mark.parametrize(
    ("driver", "said"), [("{n_workers: 2}", "but not n_workers"), ("{walltime: 5}", "five minutes.*as its walltime"), ("2", "a mapping")]
)
def test_what_is_said_of_the_driver_is_checked(run, site, driver, said):
    Path("site.yaml").write_text(f"kind: slurm\ndriver: {driver}\n")
    result = run("submit", "--cluster", "site.yaml", "--", "verify", "s.zarr")
    assert result.exit_code == 2

    assert re.search(said, result.stderr)
