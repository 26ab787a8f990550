"""Reading arrays of a store so that what is damaged or missing is an error that says where, and never zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from daskdecode.errors import DaskDecodeError, StoreError
from daskdecode.store.layout import address, reached, reason


class Whole(WrapperStore[Store]):
    """A store in which every chunk has to be there: Zarr reads one that is not as zeros, without a word.

    Where a distant store fails, it is a :class:`~daskdecode.errors.StoreError`.
    """

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As Zarr asks for it."""
        with reached(self._store):
            found = await self._store.get(key, prototype, byte_range)
        if found is None and "/c/" in key:
            raise KeyError(f"{key} is missing")
        return found


def read_stored(array: Any, index: Any, node: str, where: str) -> np.ndarray:
    """Read stored values, unscaled; damage is an error that says in which run of which store.

    Raises
    ------
    StoreError
        A chunk is missing or does not match its checksum.
    """
    try:
        return np.asarray(array[index])
    except DaskDecodeError:
        raise
    except (ValueError, RuntimeError, KeyError) as error:
        raise StoreError(
            f"A chunk of {node} in {where} cannot be read: {reason(error)}. It was damaged after the conversion: restore it from a copy, "
            "or convert again with overwrite=True. daskdecode verify says what else is damaged."
        ) from error


def open_array(store: Store, path: str) -> Any:
    """One array of a store, of which every chunk has to be there.

    Raises
    ------
    StoreError
        There is no such array, or its metadata are damaged.
    """
    try:
        return zarr.open_array(Whole(store), path=path, mode="r")
    except DaskDecodeError:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise StoreError(
            f"{path} in {address(store)} is missing or damaged ({reason(error)}): restore it from a copy, or convert again with "
            "overwrite=True. daskdecode verify says what else is damaged."
        ) from error


def read_vector(store: Store, path: str) -> np.ndarray:
    """All of one small array.

    Raises
    ------
    StoreError
    """
    return read_stored(open_array(store, path), slice(None), path, address(store))
