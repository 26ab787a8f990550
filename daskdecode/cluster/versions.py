"""Whether workers run the same code as the session that sends them work."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

from distributed import Client

from daskdecode.errors import ClusterError

_MUST_AGREE: Final = ("python", "daskdecode", "dask", "distributed")
"""Other versions of these read or run what is sent differently, or not at all."""
_SHOULD_AGREE: Final = ("cloudpickle", "msgpack", "numpy", "scipy", "scikit-learn", "xarray", "zarr", "numcodecs", "nibabel")
"""Other versions of these may give other numbers, or fail on what is sent."""


def check_versions(client: Client) -> None:
    """Compare the packages of the scheduler and of every worker with those of this session.

    Raises
    ------
    ClusterError
        One lacks daskdecode, or has another version of it, of Dask or of Python.

    Warns
    -----
    UserWarning
        Another package differs.
    """
    found: Any = client.get_versions(packages=["daskdecode", *_SHOULD_AGREE])
    here = _packages(found["client"])
    differing: dict[str, list[str]] = {"must": [], "should": []}
    # The scheduler too: it unpacks the graphs that it is sent.
    for address, described in {"the scheduler": found["scheduler"], **found["workers"]}.items():
        there = _packages(described)
        for severity, names in (("must", _MUST_AGREE), ("should", _SHOULD_AGREE)):
            for name in names:
                if there.get(name) != here.get(name):
                    said = f"{name} {there.get(name) or 'missing'} (here {here.get(name) or 'missing'}) on {address}"
                    differing[severity].append(said)
    if differing["must"]:
        raise ClusterError(
            f"The workers do not run what this session runs: {_some(differing['must'])}. Use one environment for all: a shared folder, "
            "the same container image, or the same requirements."
        )
    if differing["should"]:
        warnings.warn(
            f"Workers have other versions of packages, so that numbers may differ: {_some(differing['should'])}.", UserWarning, stacklevel=3
        )


def _packages(described: Mapping[str, Any]) -> dict[str, str | None]:
    """Versions by package; of Python the part that decides what can be unpickled."""
    packages = dict(described["packages"])
    packages["python"] = ".".join(str(packages["python"]).split(".")[:2])
    return packages


def _some(differing: list[str]) -> str:
    more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
    return "; ".join(differing[:4]) + more
