"""Files read once from start to end, gzipped or not, and files that appear only when they are whole."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Protocol

from isal import igzip, isal_zlib

from daskdecode.errors import CorruptFileError

READ_ERRORS: Any = (EOFError, OSError, isal_zlib.error)
"""What reading a truncated or damaged gzip file raises, one way or another."""

_GZIP_MAGIC: Final = b"\x1f\x8b"
_gzip: Any = igzip.IGzipFile  # untyped


class Hasher(Protocol):
    """What :mod:`hashlib` objects do."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes in."""


class _HashingReader(io.RawIOBase):
    """A raw file that shows every byte it reads to a hasher."""

    def __init__(self, raw: io.FileIO, hasher: Hasher) -> None:
        self._raw, self._hasher = raw, hasher

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        # isal's tell(), by which an error says where it happened, asks for it. There is no seek: one would hash bytes twice.
        return True

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any, /) -> int:
        n = self._raw.readinto(buffer)
        self._hasher.update(memoryview(buffer)[:n])
        return n

    def close(self) -> None:
        self._raw.close()
        super().close()


@contextlib.contextmanager
def open_stream(path: Path, hasher: Hasher | None = None) -> Iterator[IO[bytes]]:
    """Open a file for one pass, decompressed; `hasher` sees the bytes on disk."""
    compressed = is_gzip(path)
    raw: Any = io.FileIO(path)
    if hasher is not None:
        raw = _HashingReader(raw, hasher)
    with raw:
        stream = _gzip(fileobj=raw, mode="rb") if compressed else io.BufferedReader(raw)
        with stream:
            yield stream


def is_gzip(path: Path) -> bool:
    """Whether a file is gzipped, by its content rather than its name."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC


@contextlib.contextmanager
def atomic_file(path: Path, compresslevel: int) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when the block ends without an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            if path.suffix.lower() == ".gz":
                with _gzip(filename="", mode="wb", compresslevel=compresslevel, fileobj=file, mtime=0) as stream:
                    yield stream
            else:
                yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_or_explain(stream: IO[bytes], n: int, path: Path) -> bytes:
    """Read up to `n` bytes (all that is left for -1) of what comes before the voxels; CorruptFileError where that fails."""
    try:
        return stream.read(n)
    except READ_ERRORS as error:
        raise CorruptFileError(f"{path} cannot be read: {error}. The file is damaged: copy or download it again.") from error
