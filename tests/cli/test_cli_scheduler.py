"""--scheduler, --cluster and --n-workers: the same numbers wherever the work is done."""

from __future__ import annotations

import json
import re

import dask
import pytest
from distributed import LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

from daskdecode.cli.command import scheduler


@pytest.fixture(scope="module")
def decoded(store, tmp_path_factory):
    """What a decoding on this process's threads says, and the command that said it."""
    from click.testing import CliRunner

    from daskdecode.cli.main import main

    arguments = ["decode", str(store), "--subject", "01", "--mask", "vt", "--json", "--output"]
    result = CliRunner().invoke(main, [*arguments, str(tmp_path_factory.mktemp("threads"))])
    assert result.exit_code == 0, result.output
    return arguments, json.loads(result.stdout)


def _scores(found):
    return {key: found[key] for key in ("score", "accuracy", "classes", "n_folds")}


@pytest.mark.parametrize(
    "where",
    [
        ["--scheduler", "threads", "--n-workers", "1"],
        ["--n-workers", "3"],
        ["--scheduler", "threads", "--n-workers", "2-2"],  # a range is for distributed
        pytest.param(["--scheduler", "local", "--n-workers", "2"], marks=pytest.mark.slow),
    ],
)
def test_decode_anywhere(run, decoded, tmp_path, where):
    arguments, expected = decoded
    result = run(*arguments, tmp_path / "out", *where)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert _scores(json.loads(result.stdout)) == _scores(expected)
    assert dask.base.get_scheduler() is None


class _Counter(SchedulerPlugin):
    n_computed = 0

    def transition(self, key, start, finish, *args, **kwargs):
        self.n_computed += (start, finish) == ("processing", "memory")


@pytest.mark.slow
def test_convert_and_decode_on_a_scheduler_that_runs(run, study, masks, decoded, tmp_path):
    arguments, expected = decoded
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster:
        counter = _Counter()
        cluster.scheduler.add_plugin(counter)
        where = ["--scheduler", cluster.scheduler_address]
        assert run("convert", study, tmp_path / "s.zarr", *masks, *where).exit_code == 0
        assert run("verify", tmp_path / "s.zarr", *where).exit_code == 0
        result = run("decode", tmp_path / "s.zarr", *arguments[2:], tmp_path / "out", *where)
        assert counter.n_computed > 20
        assert not cluster.scheduler.tasks  # nothing is left behind on a scheduler that others use
    assert result.exit_code == 0, result.output
    assert _scores(json.loads(result.stdout)) == _scores(expected)


def test_a_cluster_file(run, decoded, tmp_path):
    arguments, expected = decoded
    (tmp_path / "laptop.yaml").write_text("kind: threads\nn_workers: 2\n")
    result = run(*arguments, tmp_path / "out", "--cluster", tmp_path / "laptop.yaml")
    assert result.exit_code == 0, result.output
    assert _scores(json.loads(result.stdout)) == _scores(expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scheduler", "slrum"], "Did you mean 'slurm'"),
        (["--scheduler", "tcp://127.0.0.1:1", "--n-workers", "2"], "n_workers means nothing"),
        (["--cluster", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--scheduler", "local", "--cluster", "x.yaml"], "give one of them"),
        (["--n-workers", "0"], "--n-workers"),
        (["--n-workers", "3-1"], "--n-workers"),
        (["--n-workers", "many"], "'many'"),
        (["--n-workers", "1-3"], "give one number to --n-workers"),
        (["--scheduler", "threads", "--n-workers", "1-3"], "do not come and go: expected a number"),
    ],
)
def test_refusals(run, store, tmp_path, options, said):
    result = run("decode", store, "--subject", "01", "--output", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["decode", "typo.zarr", "--output", "out"], "typo.zarr does not exist"),
        (["decode", "STORE", "--output", "file"], "Results need a folder"),
        (["decode", "STORE", "--output", "out", "--subject", "1"], "no subject '1'"),
        (["decode", "STORE", "--output", "out", "--subject", "01", "--labels", "fase,cat"], "fase.*Did you mean 'face'"),
        (["search", "typo.zarr", "--param", "C=1"], "typo.zarr does not exist"),
        (["verify", "typo.zarr"], "typo.zarr does not exist"),
    ],
)
def test_what_is_known_to_be_wrong_is_said_before_workers_are_asked_for(run, store, tmp_path, monkeypatch, arguments, said):
    def connect(*_, **__):
        raise AssertionError("workers were asked for")

    monkeypatch.setattr("daskdecode.cluster.connect.connect", connect)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    result = run(*(str(store) if argument == "STORE" else argument for argument in arguments), "--scheduler", "slurm")
    assert result.exit_code == 2
    assert re.search(said, result.stderr), result.stderr


def test_threads_are_dask_s_own_and_as_many_as_asked():
    with scheduler(None, None, None):
        assert dask.config.get("scheduler", None) is None
    with scheduler("threads", None, 3):
        assert dask.config.get("scheduler") == "threads"
        assert dask.config.get("num_workers") == 3
