"""Every benchmark runs, at a tiny size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
LIBRARIES = {"measure.py", "study.py"}
TINY = {
    "convert.py": (["--volumes", "12", "--runs", "2", "--repeat", "1"], "ratio"),
    "decode.py": (["--classes", "2", "--runs", "3", "--repeats", "4", "--voxels", "2000"], "ratio"),
    "growth.py": (["--what", "folds", "--doublings", "1", "--voxels", "1000", "--runs", "3", "--repeat", "1"], "exponents: CPU"),
    "many_subjects.py": (["price", "--subjects", "1", "2"], "2 subjects: again"),
    "memory.py": (["--voxels", "3000", "--runs", "3", "--repeats", "4", "--decodes", "held out"], "predicted"),
    "permutations.py": (
        ["--permutations", "3", "--screened", "2", "--voxels", "1000", "--volumes", "6", "--runs", "4"],
        "| svc, one C, 20% screened |",
    ),
    "roi.py": (
        ["--classes", "3", "--runs", "3", "--repeats", "4", "--shape", "16", "16", "9", "--voxels", "800", "--region", "60"],
        "largest difference of a score 0",
    ),
    "search.py": (["--voxels", "600", "--settings", "2"], "the peer takes"),
    "stream.py": ([], "stream: "),
    "voxel_order.py": ([], "Morton"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.name for p in FOLDER.glob("*.py") if p.name not in LIBRARIES))
def test_a_benchmark_runs(name, tmp_path):
    arguments, expected = TINY[name]
    command = [sys.executable, str(FOLDER / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
