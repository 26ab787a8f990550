"""Files damaged in a way that only reading them whole can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

import daskdecode as dd
from daskdecode.errors import CorruptFileError


@pytest.mark.parametrize("where", [-8, -5, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("mask", ["none", "auto"])
def test_a_flipped_byte_in_a_gzip_file_is_named(tmp_path: Path, make_runs, where: float, mask: str) -> None:
    runs = make_runs(2, n_volumes=40)
    damaged = Path(runs[1].bold)
    content = bytearray(damaged.read_bytes())
    content[where if where < 0 else int(where * len(content))] ^= 0xFF
    damaged.write_bytes(bytes(content))
    with pytest.raises(CorruptFileError, match=rf"{damaged.name} is damaged"):
        dd.convert(runs, tmp_path / "s.zarr", mask=mask, progress=False)
