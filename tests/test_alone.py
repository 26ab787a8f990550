"""One run at a time: whoever comes second is told who is there, and a run that was killed stands in nobody's way."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
import threading

import portalocker
import pytest

from daskdecode.alone import alone, holder
from daskdecode.errors import DecodingError

HOLDS = """
import sys
from pathlib import Path
from daskdecode.alone import alone
from daskdecode.errors import DecodingError
with alone(Path(sys.argv[1]), "busy", DecodingError, shared="shared" in sys.argv):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def another():
    """A function that starts another process, which holds a lock until it is told to end, or is killed."""
    started = []

    def start(mark, *arguments, **variables):
        command = [sys.executable, "-c", HOLDS, str(mark), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables})
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def refused(mark, **options):
    with pytest.raises(DecodingError) as caught, alone(mark, "results are written to", DecodingError, patience_s=0.1, **options):
        pass
    return str(caught.value)


def test_who_comes_second_is_told_who_is_there(tmp_path, another):
    mark = tmp_path / "new" / ".lock"
    process = another(mark, SLURM_JOB_ID="4711")
    said = refused(mark)
    assert said.startswith(f"results are written to: process {process.pid} on {platform.node()} (job 4711), since 20")
    assert said.endswith(". Wait until it has ended, or end it.")
    process.communicate("")
    assert not mark.parent.exists()  # nothing else was written there
    with alone(mark, "", DecodingError):
        assert holder(mark).startswith(f"process {os.getpid()} on ")
    assert holder(mark) is None


def test_a_killed_run_stands_in_nobody_s_way(tmp_path, another):
    mark = tmp_path / ".lock"
    process = another(mark)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert mark.exists()
    assert holder(mark) is None
    with alone(mark, "", DecodingError, patience_s=0.0):
        assert f"process {os.getpid()} " in holder(mark)
        assert len(mark.read_text().splitlines()) == 1
    assert not mark.exists()


def test_parts_share_a_whole_and_say_who_they_are(tmp_path, another):
    whole, part = tmp_path / "study.lock", tmp_path / "sub-01.lock"
    another(whole, "shared")
    process = another(part)
    with alone(whole, "", DecodingError, shared=True, patience_s=0.1):
        pass
    assert f"process {process.pid} on" in refused(whole, sharers="sub-*.lock")
    assert "process" not in refused(whole)
    with alone(tmp_path / "sub-02.lock", "", DecodingError):
        pass


def test_the_whole_keeps_parts_away(tmp_path, another):
    process = another(tmp_path / "study.lock")
    assert f"process {process.pid} on" in refused(tmp_path / "study.lock", shared=True)


def test_a_look_at_a_lock_is_waited_for(tmp_path):
    mark = tmp_path / ".lock"
    released = threading.Event()
    with mark.open("a+") as file:
        portalocker.lock(file, portalocker.LockFlags.SHARED)
        threading.Timer(0.2, lambda: (released.set(), portalocker.unlock(file))).start()
        with alone(mark, "", DecodingError):
            assert released.is_set()


def test_a_mark_that_was_deleted_by_who_had_it_is_made_anew(tmp_path, monkeypatch):
    """Between opening and locking: who locks a file that is at no place any more would be alone with it."""
    mark = tmp_path / ".lock"
    lock, n_calls = portalocker.lock, []

    def deleted_first(file, flags):
        n_calls.append(flags)
        if len(n_calls) == 1:
            mark.unlink()
        lock(file, flags)

    monkeypatch.setattr(portalocker, "lock", deleted_first)
    with alone(mark, "", DecodingError):
        assert len(n_calls) == 2
        assert mark.exists()
        assert "process" in refused(mark)


def test_where_the_file_system_knows_no_locks_it_is_said(tmp_path, monkeypatch, caplog):
    def unknown(*_):
        raise portalocker.LockException(OSError(errno.ENOSYS, "Function not implemented"))

    monkeypatch.setattr(portalocker, "lock", unknown)
    with alone(tmp_path / ".lock", "", DecodingError):
        pass
    assert "cannot be locked" in caplog.text
    assert "one run at a time" in caplog.text
