"""Hyperband searches that are killed and go on: the same numbers to the bit, and little done twice."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from scipy.stats import loguniform
from sklearn.linear_model import SGDClassifier

import daskdecode as dd
from daskdecode.alone import alone
from daskdecode.errors import DecodingError, MemoryBudgetError
from daskdecode.tuning.pooled import blocks, dask_ml_hyperband, hyperband
from daskdecode.tuning.pooled.dask_ml_hyperband import Workers
from daskdecode.tuning.pooled.stages import Score, Stage, Stages, Which, restored
from tests.killing import child_env, killing_workers

SPACE = {"alpha": loguniform(1e-4, 10.0)}


class Log:
    """What was trained: the setting and the number of the call, each model having a setting of its own; also in a file, for a process."""

    def __init__(self):
        self.calls, self.most, self.pause_s = [], None, 0.0
        self.path = os.environ.get("DASKDECODE_TEST_LOG")

    def begin(self):
        time.sleep(self.pause_s)
        if self.most is not None and len(self.calls) >= self.most:
            raise RuntimeError("no more")

    def end(self, call):
        self.calls.append(call)
        if self.path:
            tell(*call, time.time())

    def __reduce__(self):
        return "LOG"  # what is in it is no part of what an estimator that uses it is


LOG = Log()


class Logged(SGDClassifier):
    def partial_fit(self, X, y, classes=None):
        LOG.begin()
        super().partial_fit(X, y, classes=classes)
        self.n_seen = getattr(self, "n_seen", 0) + 1
        LOG.end((float(self.alpha), self.n_seen))
        return self


@pytest.fixture
def log():
    LOG.__init__()
    yield LOG
    LOG.__init__()


def make(n_subjects=7, n_runs=2, p=120, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    pattern = rng.standard_normal((n_classes, p)) * (np.arange(p) < 20)
    x, y, subjects = [], [], []
    for s in range(n_subjects):
        for r in range(n_runs):
            labels = rng.integers(0, n_classes, 18 + 4 * ((s + r) % 2))
            x.append(rng.standard_normal((labels.size, p)) + 0.4 * pattern[labels])
            y.append(labels)
            subjects += [f"{s:02d}/{r}"] * labels.size
    return np.concatenate(x), np.array([f"c{k}" for k in np.concatenate(y)]), np.array(subjects)


def searched(path=None, n_iter=9, data=None, screening=30, **options):
    x, y, runs = make() if data is None else data
    decoder = options.pop("decoder", dd.Decoder(Logged(random_state=0), screening_percentile=None, screening_n_features=screening))
    return dd.search(decoder, da.from_array(x, chunks=(50, 40)), SPACE, y, runs, method="hyperband", n_iter=n_iter, path=path, **options)


def assert_same(found, expected):
    assert found.cv_results_.keys() == expected.cv_results_.keys()
    for name, values in expected.cv_results_.items():
        if not name.endswith("_time"):
            np.testing.assert_array_equal(found.cv_results_[name], values, err_msg=name)
    assert found.best_index_ == expected.best_index_
    np.testing.assert_array_equal(found.nested_scores_, expected.nested_scores_)
    np.testing.assert_array_equal(found.best_decoder_.coef_, expected.best_decoder_.coef_)
    np.testing.assert_array_equal(found.best_estimator_.coef_, expected.best_estimator_.coef_)


def needed(found):
    """Calls without which the result would not be: not those that were begun beforehand for models that were given up."""
    table = found.cv_results_
    return {(float(p["alpha"]), c + 1) for p, n in zip(table["params"], table["partial_fit_calls"], strict=True) for c in range(n)}


def end_early(client, log, most, *args, **options):
    """Search until so many calls were made, and let go of all that is still to be done."""
    log.calls.clear()
    log.pause_s, log.most = 0.005, most
    with pytest.raises(RuntimeError, match="no more"):
        searched(*args, **options)
    while any(client.processing().values()):
        gc.collect()
        time.sleep(0.01)
    log.most = None
    return set(log.calls)


def kept(path, whole):
    """Calls that need not be made again, from the files."""
    stages = Stages(path, _content(path))
    by_bracket = np.asarray(whole.cv_results_["model_id"])
    found = set()
    for name, params in zip(by_bracket, whole.cv_results_["params"], strict=True):
        bracket, number = (int(n) for n in str(name).removeprefix("bracket=").split("-"))
        found |= {(float(params["alpha"]), c + 1) for c in range(stages.newest(Which(bracket, number)))}
    return found


def _content(path):
    import json

    file = next(path.glob("model-*.npz"))
    with np.load(file) as arrays:
        return json.loads(str(arrays["about"]))["content"]


@pytest.mark.parametrize(
    ("share", "n_classes", "screening"), [(0.25, 2, 30), pytest.param(0.5, 3, 30, marks=pytest.mark.slow), (0.9, 2, None)]
)
def test_a_search_that_ended_early_goes_on_where_it_was(share, n_classes, screening, client, tmp_path, log, monkeypatch):
    monkeypatch.setattr(dask_ml_hyperband, "_LOOK_S", 0.005)
    monkeypatch.setattr(dask_ml_hyperband, "_SHARE_OF_KEEPING", 1.0)
    data, path = make(n_classes=n_classes), tmp_path / "kept"
    whole = searched(data=data, screening=screening)
    before = end_early(client, log, int(share * len(needed(whole))), path, data=data, screening=screening)
    known = kept(path, whole)
    assert before >= known
    assert len(known) >= 0.5 * len(before), "next to nothing was kept"
    log.calls.clear()
    monkeypatch.setattr(blocks, "sums_of_classes", None)  # what was screened is not screened again
    resumed = searched(path, data=data, screening=screening)
    assert_same(resumed, whole)
    assert not set(log.calls) & known
    assert len(log.calls) == len(set(log.calls))
    assert needed(whole) <= known | set(log.calls)


def test_what_has_ended_is_read_and_nothing_is_trained(client, tmp_path, log, monkeypatch):
    path = tmp_path / "kept"
    whole = searched(path)
    n_calls = len(log.calls)
    assert n_calls >= len(needed(whole))
    assert {p.name for p in path.iterdir()} == {"search.npz"} | {
        f"model-{b}-{n}.npz" for b, n in (str(i).removeprefix("bracket=").split("-") for i in whole.cv_results_["model_id"])
    }
    monkeypatch.setattr(hyperband, "_score_groups", None)
    again = searched(path, data=make())
    assert len(log.calls) == n_calls
    assert_same(again, whole)
    for name in ("mean_partial_fit_time", "mean_score_time"):
        np.testing.assert_array_equal(again.cv_results_[name], whole.cv_results_[name])


READS = Counter()


def read(block):
    READS.update(block[:, 0].tolist())
    return block


class BeforeTrainingError(Exception):
    pass


@pytest.mark.parametrize("screening", [30, None])
def test_one_pass_screens_and_tells_the_data(screening, client, tmp_path, monkeypatch, log):
    def stop(search, runs, plan, *args):
        trained.extend(row for block in plan.blocks for r in block for row in runs[r][0].tolist())
        raise BeforeTrainingError

    x, y, runs = make()
    _, counts = np.unique(runs, return_counts=True)
    chunked = da.from_array(x, chunks=(tuple(counts.tolist()), -1)).map_blocks(read, meta=x[:0])
    decoder = dd.Decoder(Logged(random_state=0), screening_percentile=None, screening_n_features=screening)
    monkeypatch.setattr(hyperband, "_train", stop)
    for path in (None, tmp_path / "kept", tmp_path / "kept"):
        trained = []
        READS.clear()
        with pytest.raises(BeforeTrainingError):
            dd.search(decoder, chunked, SPACE, y, runs, method="hyperband", n_iter=9, path=path)
        wanted = range(len(x)) if path is not None else trained if screening is not None else []
        assert Counter(x[wanted, 0].tolist()) == READS
        assert 0 < len(trained) < len(x)


@pytest.mark.slow
def test_a_search_goes_on_as_planned_on_other_workers(client, tmp_path, log, monkeypatch):
    small = Workers(2, 24 * 2 * 4 * 40 * 120 * 8)
    monkeypatch.setattr(hyperband, "workers", lambda: small)
    whole = searched()
    end_early(client, log, len(needed(whole)) // 2, tmp_path / "kept")
    monkeypatch.setattr(hyperband, "workers", lambda: Workers(1, 2**34))
    assert_same(searched(tmp_path / "kept"), whole)
    monkeypatch.setattr(hyperband, "workers", lambda: Workers(1, 2**18))
    with pytest.raises(MemoryBudgetError, match="A worker needs"):
        searched(tmp_path / "kept")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": make(seed=1)}, "the data differ"),
        ({"screening": 20}, "screening_n_features was 30 and is 20"),
        ({"n_iter": 3}, "the settings differ; n_iter was 9 and is 3"),
        ({"random_state": 4}, "random_state was 0 and is 4"),
        ({"nested": False}, "nested was True and is False"),
        ({"decoder": dd.Decoder(Logged(random_state=1), screening_percentile=None, screening_n_features=30)}, "estimator was"),
    ],
)
def test_a_folder_of_another_search_is_refused(change, said, client, tmp_path_factory, log):
    path = Path(tmp_path_factory.getbasetemp()) / "hyperband_of_another"
    if not path.exists():
        searched(path)
    log.calls.clear()
    with pytest.raises(DecodingError, match=f"search.npz holds another Hyperband search: .*{said}"):
        searched(path, **change)
    assert not log.calls


def test_files_that_are_damaged_or_of_another_search_are_named(client, tmp_path, log):
    path, other = tmp_path / "kept", tmp_path / "other"
    searched(path, n_iter=3)
    searched(other, n_iter=3, random_state=1)
    n_calls = len(log.calls)

    def refused(message, where=path):
        with pytest.raises(DecodingError, match=message):
            searched(where, n_iter=3)
        assert len(log.calls) == n_calls

    model = path / "model-0-0.npz"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    refused(r"model-0-0\.npz is damaged, or not the file of a model of a Hyperband search.*delete its folder")
    shutil.copy(other / "model-0-0.npz", model)
    refused(r"model-0-0\.npz holds another model of a Hyperband search: search was")
    model.write_bytes(whole)
    (path / "search.npz").write_text("mine")
    refused(r"search\.npz is damaged, or not the file of a Hyperband search")
    refused("needs a folder", model)
    refused("needs a folder", tmp_path / "no" / "such")


def test_two_searches_do_not_write_to_one_folder(client, tmp_path, log):
    with (
        alone(tmp_path / "kept" / ".lock", "", DecodingError),
        pytest.raises(DecodingError, match=r"Another Hyperband search writes to .*kept"),
    ):
        searched(tmp_path / "kept")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_search_with_the_files_name(client, tmp_path, monkeypatch, log):
    save = np.savez

    def full(file, **arrays):
        if "states" in arrays:
            raise OSError(28, "No space left on device")
        save(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match=r"No space left on device: .*model-\d-\d+\.npz"):
            searched(tmp_path / "kept")
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["search.npz"]
    assert_same(searched(tmp_path / "kept"), searched())


def test_of_a_model_stay_the_newest_state_the_last_that_was_scored_and_those_to_be_scored(tmp_path):
    model = Which(2, 7)
    stages = Stages(tmp_path, {"a": 1})
    stages.keep(model, {1: "one"}, {}, {1})
    stages.keep(model, {3: "three"}, {}, {1})
    again = Stages(tmp_path, {"a": 1})
    assert again.newest(model) == 3
    assert restored(again.state(Stage(model, 1))) == "one"
    assert again.score(Stage(model, 1)) is None
    stages.keep(model, {}, {1: Score(0.5, 0.75, 0.25)}, set())
    stages.keep(model, {4: "four"}, {}, {})
    again = Stages(tmp_path, {"a": 1})
    assert [restored(again.state(Stage(model, calls))) for calls in (1, 4)] == ["one", "four"]
    assert again.state(Stage(model, 3)) is None
    assert again.score(Stage(model, 1)) == Score(0.5, 0.75, 0.25)
    stages.keep(model, {5: "five"}, {4: Score(0.5, 0.5, 0.25)}, {})
    assert Stages(tmp_path, {"a": 1}).state(Stage(model, 1)) is None
    assert again.newest(Which(2, 8)) == 0
    with pytest.raises(DecodingError, match=r"model-2-7\.npz holds another model"):
        Stages(tmp_path, {"a": 2})


CHILD = """
import sys, time
from distributed import Client, LocalCluster
import tests.tuning.pooled.test_tuning_hyperband_resume as t

keep = t.dask_ml_hyperband.Hyperband._keep

async def kept(self):
    began = time.time()
    await keep(self)
    t.tell("kept", began)

t.dask_ml_hyperband.Hyperband._keep = kept
t.LOG.pause_s = float(sys.argv[2])
with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster, Client(cluster):
    t.searched(t.Path(sys.argv[1]), n_iter=27)
"""


def tell(*words):
    """Add a line to the file that the environment names; a line is whole or not there."""
    with Path(os.environ["DASKDECODE_TEST_LOG"]).open("a") as file:
        file.write(" ".join([*map(repr, words), "\n"]))


def read_log(path):
    """When each call ended, and when each look for what is to be kept began, of those that were done with it."""
    lines = (
        [line.split() for line in Path(path).read_text().splitlines(keepends=True) if line.endswith("\n")] if Path(path).exists() else []
    )
    calls = {(float(alpha), int(n)): float(ended) for alpha, n, ended in (line for line in lines if len(line) == 3)}
    return calls, [float(line[1]) for line in lines if len(line) == 2]


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_where_it_was(client, tmp_path, log):
    whole = searched(n_iter=27)
    want = needed(whole)
    for percent in (25, 50, 90):
        path, told = tmp_path / f"{percent}", tmp_path / f"{percent}.log"
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), "0.15"], env=child_env(DASKDECODE_TEST_LOG=str(told)))
        try:
            for _ in range(4000):
                if len(read_log(told)[0].keys() & want) >= percent / 100 * len(want):
                    break
                assert child.poll() is None, "it ended before it was killed"
                time.sleep(0.02)
            else:
                raise AssertionError("it never came so far")
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        before, looks = read_log(told)
        missing = want - before.keys()
        log.calls.clear()
        assert_same(searched(path, n_iter=27), whole)
        again = set(log.calls) & before.keys()
        # What cannot be helped is what ended since the last look that was done with: nothing of it is on disk. A look later, since the
        # driver hears of an end a moment after it.
        late = {call for call, ended in before.items() if ended > looks[-2]}
        print(f"killed at {percent} %: {len(missing)} of {len(want)} calls missing, {len(again)} made again, {len(late)} had just ended")
        assert again <= late
        # Two threads, 0.15 s a call.
        window = max(before.values()) - looks[-2]
        assert len(late) <= 2 * (1 + window / 0.15)


@pytest.mark.slow
def test_hyperband_survives_workers_that_are_killed_all_the_time(tmp_path, log, client):
    whole = searched(n_iter=27)
    with dd.connect("local", n_workers=2, threads_per_worker=1, allowed_failures=1000) as other:
        other.run(_slow_down, 0.05)
        with killing_workers(other) as killed:
            while len(killed) < 2:
                assert_same(searched(tmp_path / f"kept-{len(list(tmp_path.iterdir()))}", n_iter=27), whole)


def _slow_down(pause_s):
    import tests.tuning.pooled.test_tuning_hyperband_resume as here

    here.LOG.pause_s = pause_s


LOST = """
import sys
import daskdecode as dd
import tests.tuning.pooled.test_tuning_hyperband_resume as t
with dd.connect(sys.argv[1]) as client:
    client.wait_for_workers(1, timeout=60)
    client.run(t._slow_down, 0.1)
    try:
        t.searched(t.Path(sys.argv[2]), n_iter=27)
    except dd.errors.ClusterError as error:
        print("ClusterError:", error)
"""


@pytest.mark.slow
def test_a_scheduler_that_goes_ends_hyperband_in_words(tmp_path, log):
    file, path = tmp_path / "scheduler.json", tmp_path / "kept"
    run = lambda *args, **more: subprocess.Popen([sys.executable, *args], env=child_env(), text=True, **more)  # noqa: E731
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = run(
        "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file), **quiet
    )
    worker = driver = None
    try:
        while not file.exists():
            time.sleep(0.05)
        import json

        address = json.loads(file.read_text())["address"]
        worker = run("-m", "dask", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "5", **quiet)
        driver = run("-c", LOST, address, str(path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2000):
            if len(list(path.glob("model-*.npz"))) > 4:
                break
            assert driver.poll() is None
            time.sleep(0.05)
        scheduler.kill()
        said, _ = driver.communicate(timeout=90)
    finally:
        for process in (scheduler, worker, driver):
            if process is not None:
                process.kill()
                process.wait()
    assert said.startswith("ClusterError: The connection to the scheduler was lost")
    assert "the same call goes on from there" in said
