"""Tools for tests: a store that counts what is read and written, and a scheduler that forbids computing.

They are part of the public package so that anyone who builds on daskdecode can prove that his own steps stay lazy.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NoReturn

import dask
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from daskdecode.schema import BOLD


class CountingStore(WrapperStore[Store]):
    """A Zarr store that remembers every key that was asked of it.

    Parameters
    ----------
    store : zarr.abc.store.Store
        The store to wrap, for example ``zarr.storage.LocalStore(path)``.

    Attributes
    ----------
    gets, sets : list of str
        Keys read and written, in order, once for every request.

    Examples
    --------
    >>> counting = CountingStore(LocalStore("study.zarr"))        # doctest: +SKIP
    >>> ds = dd.open_subject(counting)                            # doctest: +SKIP
    >>> counting.bold_reads                                       # doctest: +SKIP
    Counter()

    Notes
    -----
    Counts are kept in this process only: use a scheduler of threads.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._lock = threading.Lock()
        self.gets: list[str] = []
        self.sets: list[str] = []

    @property
    def chunk_reads(self) -> Counter[str]:
        """How often every chunk of every array was read, by key."""
        return Counter(key for key in self.gets if "/c/" in key)

    @property
    def bold_reads(self) -> Counter[str]:
        """How often every chunk of ``bold`` was read, by key."""
        return Counter(key for key in self.gets if f"/{BOLD}/c/" in key)

    def reset(self) -> None:
        """Forget everything counted so far."""
        with self._lock:
            self.gets.clear()
            self.sets.clear()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Count and pass on."""
        with self._lock:
            self.gets.append(key)
        return await self._store.get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Count and pass on."""
        key_ranges = list(key_ranges)
        with self._lock:
            self.gets.extend(key for key, _ in key_ranges)
        return await self._store.get_partial_values(prototype, key_ranges)

    async def set(self, key: str, value: Buffer) -> None:
        """Count and pass on."""
        with self._lock:
            self.sets.append(key)
        await self._store.set(key, value)

    def with_read_only(self, read_only: bool = False) -> CountingStore:  # noqa: ARG002
        """Itself: a read-only copy would count apart."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class UnexpectedComputeError(AssertionError):
    """Something was computed where only a graph should have been built."""


class NoCompute:
    """A context in which computing any Dask collection raises :class:`UnexpectedComputeError`.

    Examples
    --------
    >>> with NoCompute():                                        # doctest: +SKIP
    ...     z = dd.standardize(dd.open_subject("study.zarr"), "zscore_run")
    """

    def __init__(self) -> None:
        self._config: Any = None

    def __enter__(self) -> NoCompute:
        self._config = dask.config.set(scheduler=_refuse)
        self._config.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._config.__exit__(kind, value, traceback)


def _refuse(_: Any, keys: Any, **kwargs: Any) -> NoReturn:  # noqa: ARG001
    raise UnexpectedComputeError(f"Computed {keys!r} where nothing should have been computed.")
