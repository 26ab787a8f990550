"""The cluster behind the active scheduler, where there is one: asked without importing distributed, as whoever uses it has imported it."""

from __future__ import annotations

from typing import Any

import cloudpickle
from dask.base import get_scheduler

from daskdecode.errors import ClusterError, DecodingError


def active_client() -> Any | None:
    """The :class:`distributed.Client` that is the active scheduler, None where that is another one."""
    client = getattr(get_scheduler(), "__self__", None)
    return client if hasattr(client, "scheduler_info") else None


def check_workers_have(value: Any, what: str) -> None:
    """Refuse what the workers of the active cluster cannot load.

    A worker takes tasks apart before it runs them, and ends where it misses a module; so does the next, and the call would wait for ever.

    Parameters
    ----------
    value : object
    what : str
        What it is, in a sentence of an error.

    Raises
    ------
    DecodingError
        It cannot be pickled.
    ClusterError
        A worker cannot import what it is made of.
    """
    client = active_client()
    if client is None:
        return
    try:
        pickled = cloudpickle.dumps(value)
    except Exception as error:  # whatever a class raises that does not let itself be pickled
        raise DecodingError(f"{what} cannot be sent to workers: {type(error).__name__}: {error}.") from error
    missing = {address: why for address, why in client.run(_why_not, pickled).items() if why}
    if missing:
        address, why = next(iter(missing.items()))
        raise ClusterError(
            f"{what} cannot be loaded on {len(missing)} of the workers ({address}): {why}. Install the module there, put its folder in "
            "PYTHONPATH of the workers, or send it: client.upload_file('module.py')."
        )


def _why_not(pickled: bytes) -> str | None:
    try:
        cloudpickle.loads(pickled)
    except Exception as error:  # of imports, or of what is imported
        return f"{type(error).__name__}: {error}"
    return None
