"""What the documents say is true: their Python runs, their commands run, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    """Code blocks of a document; those below an HTML comment that begins with "not run" are left out."""
    found = BLOCK.finditer(document.read_text(encoding="utf-8"))
    return [m["code"] for m in found if m["language"] == language and not m["before"].startswith("<!-- not run")]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with this environment's programs first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")], ids=lambda d: d.name)
def test_python_blocks_run_one_after_another(document, tmp_path):
    (tmp_path / "blocks.py").write_text("\n".join(blocks(document, "python")), encoding="utf-8")
    done = run([sys.executable, "-W", "error", "blocks.py"], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_readmes_command_line_runs(tmp_path):
    simulate = 'import daskdecode as dd; dd.simulate_study("my-study", seed=1)'
    assert run([sys.executable, "-c", simulate], tmp_path).returncode == 0
    commands = [line for code in blocks(ROOT / "README.md", "sh") for line in code.splitlines() if line.startswith("daskdecode ")]
    assert {line.split()[1] for line in commands} == {"convert", "info", "verify", "decode", "export"}
    done = run(["bash", "-ec", "\n".join(commands)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "results").rglob("*_report.html"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_files_that_are_named_exist(document):
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:examples|tests|docs|benchmarks|\.ci)/[\w./-]+)`", text)
    missing = [link for link in links if not (document.parent / link).exists()] + [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_options_of_the_decoder_are_documented():
    import daskdecode as dd

    text = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
    assert [name for name in dd.Decoder().get_params() if f"| `{name}` |" not in text] == []
