"""The bar: after a while, on a terminal, unless it is switched off; and it never ends the work."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path

import pytest
from rich.console import Console

import daskdecode as dd
from daskdecode import progress
from daskdecode.store.progress import forget


def shown(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool = True, wanted: bool = True, patience_s: float = 0.0, count=lambda: (2, 5)
) -> str:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=screen, force_terminal=terminal, width=120))
    monkeypatch.setattr(progress, "_PATIENCE_S", patience_s)
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.02)
    with progress.watch("Converting runs", count, progress=wanted):
        time.sleep(0.3)
    return screen.getvalue()


def test_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = shown(monkeypatch)
    assert "Converting runs" in screen
    assert "2/5" in screen


@pytest.mark.parametrize("how", [{"terminal": False}, {"wanted": False}, {"patience_s": 30.0}])
def test_not_shown(monkeypatch: pytest.MonkeyPatch, how) -> None:
    assert shown(monkeypatch, **how) == ""


def test_a_store_that_cannot_be_asked_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError("no connection")

    assert "Converting runs" in shown(monkeypatch, count=fail)


def test_errors_pass_through() -> None:
    with pytest.raises(KeyError), progress.watch("", lambda: (0, None), progress=True):
        raise KeyError("x")


def test_conversion_and_verification_count_their_volumes(tmp_path: Path, make_runs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[int, int | None]]] = {}

    @contextlib.contextmanager
    def watch(description, count, *, progress):
        yield
        here = count()
        forget([str(run.bold) for run in runs])  # as if the work had been done by another process
        seen[description] = [here, count()]

    runs = make_runs(3, 6)
    for module in ("convert", "verify"):
        monkeypatch.setattr(f"daskdecode.store.{module}.watch", watch)
    dd.convert(runs, tmp_path / "s.zarr", mask="none")
    dd.verify(tmp_path / "s.zarr")
    assert seen["Converting volumes"] == [(18, 18), (18, 18)]
    assert seen["Verifying volumes"] == [(18, 18), (0, 18)]
