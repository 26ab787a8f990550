"""Clusters that a dask-gateway server starts for its users."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Final

from distributed.security import Security

from daskdecode.cluster.batch import N_WORKERS, require
from daskdecode.cluster.bounded import within
from daskdecode.cluster.spec import ClusterSpec
from daskdecode.errors import ClusterError, ClusterSpecError
from daskdecode.lost import said_of

_STOP_S: Final = 10.0
"""Seconds to stop a cluster that has not started: the gateway may not answer at all."""


def start(spec: ClusterSpec, security: Security | None) -> Any:  # noqa: ARG001  # a gateway makes credentials of its own
    """Ask the gateway for a cluster, and for workers.

    Raises
    ------
    ClusterSpecError
        dask-gateway is missing, no address is known, or the gateway does not know an option.
    ClusterError
        The gateway does not answer, refuses, or has not started a cluster in time.
    """
    dask_gateway = require(spec.kind, "dask_gateway", "gateway")
    _let_closed_ones_go(dask_gateway.Gateway)
    try:
        gateway = dask_gateway.Gateway(spec.get("address"), auth=spec.get("auth"))
    except ValueError as error:
        raise ClusterSpecError(
            f"The gateway is not known: {error} Give address= (http://host:port), or set gateway.address in Dask's configuration."
        ) from error
    try:
        return _started(gateway, spec)
    except BaseException:
        with contextlib.suppress(Exception):
            within(_STOP_S, gateway.close)  # aiohttp complains of what is left open
        raise


def _started(gateway: Any, spec: ClusterSpec) -> Any:
    names: list[str] = []
    fewest, most = spec.workers(N_WORKERS)

    def begin() -> Any:
        names.append(gateway.submit(_chosen(gateway, spec)))
        cluster = gateway.connect(names[0], shutdown_on_close=True)
        cluster.adapt(minimum=fewest, maximum=most)
        return cluster

    try:
        return within(spec.timeout_s, begin, undo=lambda late: late.close())
    except ClusterSpecError:
        raise
    except BaseException as error:  # of the gateway, of aiohttp, of the network: they share no class
        left = _stopped(gateway, names)
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        why = f"it has not within {spec.timeout_s:g} s" if isinstance(error, TimeoutError) else said_of(error).removesuffix(".")
        raise ClusterError(f"The gateway {gateway.address} does not start a cluster: {why}. {left}".rstrip()) from error


def close(cluster: Any, timeout_s: float) -> str:
    """End it. Returns what may be left, and what removes it."""
    try:
        within(timeout_s, cluster.close)
    except TimeoutError:
        return f"The gateway does not answer. {_left(cluster.gateway, cluster.name)}"
    return ""


def _stopped(gateway: Any, names: list[str]) -> str:
    """Stop what was begun; returns what may be left."""
    for name in names:
        try:
            with contextlib.suppress(ValueError):  # there is no such cluster any more
                within(_STOP_S, functools.partial(gateway.stop_cluster, name))
        except Exception:
            return _left(gateway, name)
    return ""


def _left(gateway: Any, name: str) -> str:
    return f"Cluster {name} may be left there. Once it answers, remove it: dask_gateway.Gateway({gateway.address!r}).stop_cluster({name!r})"


def _let_closed_ones_go(gateway: Any) -> None:
    """Collect clients of a gateway in silence. dask-gateway (to 2026.3) closes them again, which fails where their loop has ended."""
    close = gateway.__del__
    if close.__module__ == __name__:
        return

    def collected(self: Any) -> None:
        with contextlib.suppress(RuntimeError):
            close(self)

    gateway.__del__ = collected


def _chosen(gateway: Any, spec: ClusterSpec) -> Any:
    """The gateway's options, as they are wanted."""
    offered = gateway.cluster_options()
    wanted = _wanted(spec)
    unknown = sorted(set(wanted) - set(offered))
    if unknown:
        raise ClusterSpecError(
            f"The gateway does not let its users choose {', '.join(unknown)}. It offers: {', '.join(offered) or 'nothing'}."
        )
    offered.update(**wanted)
    return offered


def _wanted(spec: ClusterSpec) -> dict[str, Any]:
    """Options under the names that most gateways give them."""
    said = {"worker_cores": spec.get("threads_per_worker"), "image": spec.get("image"), "environment": spec.get("environment")}
    if (nbytes := spec.get("memory_limit")) is not None:
        said["worker_memory"] = nbytes / 2**30  # gateways count in GiB
    own: dict[str, Any] = spec.get("options", {})
    return {name: value for name, value in said.items() if value is not None} | own


def why_no_workers(cluster: Any) -> str:
    """A gateway does not say why workers do not come."""
    return f"The gateway has started cluster {cluster.name}, but none of its workers. Its logs say why; ask whoever runs it."


def hopeless(cluster: Any) -> str | None:  # noqa: ARG001
    """Nothing is known of it."""
    return None
