"""Studies of many subjects: faults, price a subject, planning, scaling over workers.

    python benchmarks/many_subjects.py faults  [--subjects 30]    two commands from BIDS to a table; two subjects are broken; a kill
    python benchmarks/many_subjects.py price   [--subjects 5 50]  processor seconds a subject
    python benchmarks/many_subjects.py plan    [--subjects 1000]  seconds until the first subject is begun, tasks, milliseconds a task
    python benchmarks/many_subjects.py scaling [--subjects 8]     one against two workers of one thread on this machine

Data come from dd.simulate_study (seed 0). Processor seconds count all processes; wall seconds mean little on shared cores.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import cost_here, machine  # sets the threads of BLAS: before NumPy

import dask  # isort: skip
import nibabel as nib
import numpy as np
import pandas as pd

import daskdecode as dd
from daskdecode.cluster.spread import run_each
from daskdecode.store.open import stored_subjects
from daskdecode.study.subject import DecodeSubject, Permutations, Question

LABELS = ["face", "cat"]
COMMAND = [sys.executable, "-m", "daskdecode.cli"]


def cpu_s() -> float:
    """Processor seconds of this process and of those that it started and that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def simulate(folder: Path, n_subjects: int, shape: tuple[int, int, int], n_runs: int) -> Path:
    """Make a study; conversions and decodes are what is measured."""
    return dd.simulate_study(folder / "bids", n_subjects=n_subjects, n_runs=n_runs, shape=shape, n_blocks=1)


# --- faults -----------------------------------------------------------------------------------------------------------------------


def break_study(bids: Path) -> None:
    """Make the runs unequal, one image too short, and one subject without a condition."""
    subjects = sorted(bids.glob("sub-*"))
    for subject in subjects[::4]:
        for path in (subject / "func").glob("*_run-02_*"):
            path.unlink()
    image = next((subjects[1] / "func").glob("*_run-03_bold.nii.gz"))
    image.write_bytes(image.read_bytes()[: image.stat().st_size * 2 // 3])
    for path in (subjects[2] / "func").glob("*_events.tsv"):
        events = pd.read_csv(path, sep="\t")
        events[events["trial_type"] != "cat"].to_csv(path, sep="\t", index=False)


def run(*arguments: object) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command of daskdecode; what it said, and processor seconds."""
    before = cpu_s()
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done, cpu_s() - before


def same_files(one: Path, other: Path) -> tuple[int, list[str]]:
    """Number of result files, and those that differ (reports apart: they name the memory that was free)."""
    names = [
        {p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file() and p.suffix != ".html" and ".daskdecode" not in p.parts}
        for f in (one, other)
    ]
    differ = [name for name in names[0] & names[1] if not filecmp.cmp(one / name, other / name, shallow=False)]
    return len(names[0]), sorted(differ + list(names[0] ^ names[1]))


def faults(folder: Path, n_subjects: int) -> None:
    """Two commands; then the second one killed half way, and given again."""
    bids, store = simulate(folder, n_subjects, (12, 14, 11), 4), folder / "study.zarr"
    break_study(bids)
    decode = ["decode", store, "--labels", "face,cat", "--output"]
    for command in (["convert", bids, store], [*decode, folder / "whole"]):
        done, cpu = run(*command)
        print(f"daskdecode {command[0]}: exit status {done.returncode}, {cpu:.1f} CPU s")
        print("\n".join(line for line in done.stdout.splitlines() if "NOT CONVERTED" in line or "failed" in line or "subjects are" in line))
    process = subprocess.Popen([*COMMAND, *map(str, [*decode, folder / "killed"])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = folder / "killed" / ".daskdecode"
    while len(list(records.glob("*.json"))) < n_subjects // 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_done, whole = len(list(records.glob("*.json"))), (folder / "killed" / "study_scores.tsv").exists()
    done, cpu = run(*decode, folder / "killed")
    n_files, differ = same_files(folder / "whole", folder / "killed")
    print(f"killed after {n_done} subjects (table there: {whole}); again: status {done.returncode}, {cpu:.1f} CPU s")
    print(f"{n_files} files, {len(differ)} differ from those of the run that was not killed {differ[:3]}")
    subjects = [path.name for path in (folder / "whole").glob("sub-*") if path.is_dir()]
    for subject in subjects:
        run(*decode, folder / "alone", "--subject", subject)
    n_files = [len([p for p in (folder / where).glob("sub-*/**/*.*") if p.is_file()]) for where in ("whole", "alone")]
    differ = [name for name in same_files(folder / "whole", folder / "alone")[1] if not name.startswith("study_")]
    print(f"{len(subjects)} subjects decoded alone: {n_files} files, {len(differ)} differ")


# --- price ------------------------------------------------------------------------------------------------------------------------


def price(folder: Path, sizes: list[int]) -> None:
    """Processor seconds a subject, of studies of several sizes made of the same subjects."""
    bids = simulate(folder, max(sizes), (12, 14, 11), 4)
    dd.convert(bids, folder / "first.zarr", subjects=["01"], progress=False)  # imports and compiles
    dd.decode_study(folder / "first.zarr", dd.Decoder("svc"), labels=LABELS, folder=folder / "first", progress=False)
    for size in sizes:
        store, names = folder / f"{size}.zarr", [f"{n + 1:02}" for n in range(size)]
        converted = cost_here(lambda store=store, names=names: dd.convert(bids, store, subjects=names, progress=False))
        print(f"{size:4} subjects: convert         {converted.cpu_s / size:.3f} CPU s a subject")
        for told, options in (("decode          ", {}), ("decode and write", {"folder": folder / f"results-{size}"})):
            found = cost_here(lambda s=store, o=options: dd.decode_study(s, dd.Decoder("svc"), labels=LABELS, progress=False, **o))
            peak = found.peak_nbytes / 1e6
            print(f"{size:4} subjects: {told} {found.cpu_s / size:.3f} CPU s a subject, {peak:.0f} MB above the start")
        again = cost_here(lambda s=store, o=options: dd.decode_study(s, dd.Decoder("svc"), labels=LABELS, progress=False, **o))
        print(f"{size:4} subjects: again           {again.cpu_s / size:.3f} CPU s a subject")


# --- plan -------------------------------------------------------------------------------------------------------------------------


def one_subject(folder: Path, n_runs: int = 10) -> Path:
    """Convert a subject of tiny images."""
    labels = [label for label in LABELS for _ in range(4)]
    rng = np.random.default_rng(0)
    runs = []
    for number in range(n_runs):
        path = folder / f"run-{number + 1:02}.nii"
        nib.Nifti1Image(rng.integers(0, 99, (3, 4, 5, len(labels)), dtype=np.int16), np.eye(4)).to_filename(path)
        runs.append(dd.Run(path, labels=labels, subject="0001", run=f"{number + 1:02}", repetition_time=2.0))
    return Path(dd.convert(runs, folder / "study.zarr", mask="none", progress=False))


def widen(store: Path, n_subjects: int) -> None:
    """Make the root what it were if there were as many subjects like the first: planning reads nothing else."""
    root = json.loads((store / "zarr.json").read_text())
    plan, metadata = root["attributes"]["plan"], root["consolidated_metadata"]["metadata"]
    text, n_files = json.dumps([plan["subjects"], plan["runs"], plan["sources"]]), len(plan["sources"])
    every: dict[str, Any] = {"subjects": [], "runs": [], "sources": []}
    for subject in range(n_subjects):
        subjects, runs, sources = json.loads(text.replace("0001", f"{subject + 1:04}"))
        every["subjects"] += subjects
        every["runs"] += [{**run, "source": run["source"] + n_files * subject} for run in runs]
        every["sources"] += sources
    root["attributes"]["plan"] = every
    wide = {key.replace("0001", f"{n + 1:04}"): value for n in range(n_subjects) for key, value in metadata.items()}
    root["consolidated_metadata"]["metadata"] = wide
    (store / "zarr.json").write_text(json.dumps(root))


class Nothing:
    """The work of a subject that takes no time."""

    def __call__(self, _: int | None) -> None:
        """Do it."""


def plan(folder: Path, n_subjects: int) -> None:
    """Time until the first subject is begun; tasks; what the scheduler takes a task."""
    from distributed import Client, LocalCluster

    store = one_subject(folder)
    widen(store, n_subjects)
    decoder = dd.Decoder("svc")
    question = Question(decoder, LABELS, None, Permutations(), os.getcwd())  # noqa: PTH109

    def planned() -> dict[str, DecodeSubject]:
        return {name: DecodeSubject(stored, question, None) for name, stored in stored_subjects(store)[0].items()}

    found = cost_here(planned)
    one = next(iter(found.value.values()))
    size = (store / "zarr.json").stat().st_size / 1e6
    print(f"{n_subjects} subjects of 10 runs, a root of {size:.0f} MB: planned in {found.cpu_s:.2f} CPU s ({found.wall_s:.2f} s)")
    print(f"{len(found.value)} tasks")
    inner = decoder.explain(dd.select_labels(one.stored.open(), LABELS)).n_tasks
    print(f"a task is {len(pickle.dumps(one)):,} bytes; on its worker a subject makes about {inner} tasks: {inner * n_subjects:,} in all")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        sent = cost_here(lambda: sum(1 for _ in run_each({name: Nothing() for name in found.value})))
        print(f"a cluster took {1000 * sent.wall_s / n_subjects:.2f} ms ({1000 * sent.cpu_s / n_subjects:.2f} CPU ms of the driver) a task")


# --- scaling ----------------------------------------------------------------------------------------------------------------------


def scaling(folder: Path, n_subjects: int) -> None:
    """The same study on one worker and on two."""
    from distributed import Client, LocalCluster

    store = folder / "study.zarr"
    dd.convert(simulate(folder, n_subjects, (24, 28, 22), 6), store, progress=False)
    decoder = dd.Decoder("svc", memory_budget="1GB")
    found: dict[int, Any] = {}
    walls, longest = {1: np.inf, 2: np.inf}, {1: np.inf, 2: np.inf}
    for n_workers in (1, 2) * 2:  # the best of two rounds, as cores are shared
        with LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
            dd.decode_study(store, decoder, labels=LABELS, permutations=2, progress=False)  # imports and compiles
            before, begun = client.run(time.process_time), time.perf_counter()
            found[n_workers] = dd.decode_study(store, decoder, labels=LABELS, permutations=40, progress=False)
            wall = time.perf_counter() - begun
            each = [after - before[address] for address, after in client.run(time.process_time).items()]
            walls[n_workers], longest[n_workers] = min(walls[n_workers], wall), min(longest[n_workers], max(each))
        print(f"{n_workers} workers: {wall:.1f} s; processor seconds of each worker {[round(s, 1) for s in each]}")
    print(f"wall: {walls[1] / walls[2]:.2f} times as fast; by processor seconds of the busiest worker {longest[1] / longest[2]:.2f}")
    print("same scores:", found[1].identical(found[2]))


def main() -> None:
    """Run one of the benchmarks in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["faults", "price", "plan", "scaling"])
    parser.add_argument("--subjects", type=int, nargs="*")
    options = parser.parse_args()
    defaults = {"faults": [30], "price": [5, 50], "plan": [1000], "scaling": [8]}
    sizes = options.subjects or defaults[options.what]
    print(machine("dask", "distributed", "zarr"), "; load", os.getloadavg()[0])
    folder = Path(tempfile.mkdtemp(prefix="daskdecode-benchmark-"))
    single: dict[str, Callable[[Path, int], None]] = {"faults": faults, "plan": plan, "scaling": scaling}
    try:
        with dask.config.set(scheduler="threads") if options.what in ("price", "faults") else dask.config.set({}):
            price(folder, sizes) if options.what == "price" else single[options.what](folder, sizes[0])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
