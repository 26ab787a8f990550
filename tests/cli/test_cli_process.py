"""The command as a process: quick help, no tracebacks, exit statuses, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import click
import psutil
import pytest

import daskdecode
from daskdecode.cli.command import Command, Group, as_failure
from daskdecode.cli.main import main
from daskdecode.errors import MemoryBudgetError, SelectionError

COMMAND = [sys.executable, "-m", "daskdecode.cli"]


def start(*arguments, **options):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options)


def test_version_and_help_import_nothing_heavy():
    assert start("--version").stdout.strip() == f"daskdecode, version {daskdecode.__version__}"
    code = (
        "import sys, daskdecode.cli.main as m; m.main(['convert', '--help'], standalone_mode=False); print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "dask", "xarray", "zarr", "nibabel", "nilearn", "pandas", "matplotlib"} & set(result.stderr.split())


@pytest.mark.parametrize("name", list(main.commands))
def test_every_help_has_an_example(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"daskdecode {name} " in result.output.split("Example")[1]


def test_help_names_every_estimator(run):
    from daskdecode.engine.registry import CLASSIFIERS

    for command in ("decode", "search"):
        words = set(run(command, "--help").stdout.replace(",", " ").split())
        assert set(CLASSIFIERS) - {"svc_l2", "logistic_l2"} <= words  # these are svc and logistic


def test_no_traceback_but_with_debug(tmp_path):
    quiet, loud = start("info", tmp_path / "nowhere.zarr"), start("info", tmp_path / "nowhere.zarr", "--debug")
    assert quiet.returncode == 2
    assert "Traceback" not in quiet.stderr
    assert quiet.stderr.count("\n") == 1
    assert "Traceback" in loud.stderr
    assert "StoreError" in loud.stderr


def test_json_alone_on_stdout(store):
    result = start("info", store, "--json")
    assert json.loads(result.stdout)["complete"]
    assert result.stderr == ""


def test_ctrl_c_while_packages_are_imported_is_130_and_one_line():
    code = """
import sys
from daskdecode.cli import run

class Interrupted:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
run()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "Error: Interrupted.\n")


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise on Windows")
def test_ctrl_c_is_130_and_one_line(tmp_path):
    process = subprocess.Popen([*COMMAND, "demo", "--output", str(tmp_path / "demo")], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "Simulating" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert rest.strip().startswith("Error: Interrupted")
    assert rest.strip().count("\n") == 0


def _is_there(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise on Windows")
@pytest.mark.parametrize("after_s", [0.2, 3, 6])  # while workers start, while they import, and while they work
def test_ctrl_c_with_workers_is_one_line_too(store, tmp_path, after_s):
    """A terminal sends it to the workers as well, which are not to answer with tracebacks of their own."""
    arguments = ["decode", str(store), "--subject", "01", "--mask", "vt", "--output", str(tmp_path / "out"), "--permutations", "1000000"]
    command = [*COMMAND, *arguments, "--no-progress", "--scheduler", "local", "--n-workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(psutil.Process(process.pid).children(recursive=True)) < 2 and process.poll() is None:  # a tracker of semaphores, a worker
        time.sleep(0.05)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    # Python's tracker of semaphores, a process of its own, rarely finds one that nobody gave back, and removes it: that is its to say.
    lines = [line for line in said.strip().splitlines() if "resource_tracker" not in line and "warnings.warn(" not in line]
    assert len(lines) == 1, said
    assert lines[0].startswith("Error: Interrupted"), said
    until = time.monotonic() + 20
    while _is_there(process.pid) and time.monotonic() < until:  # Python's tracker of semaphores ends a moment later
        time.sleep(0.1)
    assert not _is_there(process.pid)


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise on Windows")
def test_after_ctrl_c_it_is_still_said_what_may_be_left_of_a_cluster():
    code = """
import logging, os, signal, threading
from daskdecode.cli.command import scheduler
from daskdecode.cluster import local

close = local.close
def left(*args):
    logging.getLogger("distributed.nanny").error("Traceback of what was cut off")
    return close(*args) or "Jobs may be left: scancel 7"
local.close = left

try:
    with scheduler("threads", None, (1, 1)):
        os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("interrupted")
local.close = close
def elsewhere():
    with scheduler("threads", None, (1, 1)):
        print("in another thread")
thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert (result.stdout, result.stderr) == ("interrupted\nin another thread\n", "Jobs may be left: scancel 7\n")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (SelectionError("No such\nlabel."), 2, "No such label."),
        (MemoryBudgetError("too small"), 2, "too small"),
        (FileNotFoundError(2, "No such file or directory", "a.nii"), 2, "a.nii: No such file or directory."),
        (MemoryError(), 2, "--memory-budget"),
        (click.UsageError("wrong"), 2, "wrong"),
        (ZeroDivisionError("oops"), 70, "ZeroDivisionError: oops"),
    ],
)
def test_whose_fault_an_error_is(error, status, text):
    failure = as_failure(error)
    assert failure.exit_code == status
    assert text in failure.message
    assert "\n" not in failure.message


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Pass overwrite=True to replace it, or choose another name.", "Give --overwrite to replace it, or choose another name."),
        ("convert again with overwrite=True. Then", "convert again --overwrite. Then"),
        ("Pass repetition_time=, in seconds.", "Give --repetition-time, in seconds."),
        ("To keep all voxels, convert with mask='none'.", "To keep all voxels, convert with --mask none."),
        ("Give a single setting (param_grid={'C': 1}), another cv=, or tune='held_out'.", "Give another --cv, or --tune held_out."),
        ("labels='x' is wrong", "labels='x' is wrong"),
    ],
)
def test_advice_names_options(said, shown):
    assert as_failure(SelectionError(said)).message == shown


def test_faults_and_notes_through_the_group(capsys):
    @click.command(cls=Command)
    @click.option("--fail", is_flag=True)
    @click.pass_context
    def work(ctx, fail):
        import warnings

        warnings.warn("3 voxels are constant.", stacklevel=1)
        if fail:
            raise RuntimeError("broken\ninside")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        assert ctx.obj == {"progress": False}

    group = Group("tool", commands={"work": work})
    with pytest.raises(SystemExit) as ended:
        group.main(["work", "--no-progress"])
    assert ended.value.code == 0
    assert capsys.readouterr().err == "Note: 3 voxels are constant.\n"
    with pytest.raises(SystemExit) as ended:
        group.main(["work", "--fail"])
    assert ended.value.code == 70
    err = capsys.readouterr().err
    assert err.splitlines()[1].startswith("Error: RuntimeError: broken inside")
    assert err.count("\n") == 2
    with pytest.warns(UserWarning, match="constant"), pytest.raises(RuntimeError, match="broken"):
        group.main(["work", "--fail", "--debug"])
