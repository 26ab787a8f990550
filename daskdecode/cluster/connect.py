"""One call for every place where work can be done: this machine, a scheduler that runs, a batch system, Kubernetes, a gateway."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Final

import dask
from distributed import Client
from distributed.security import Security

from daskdecode.cluster.client import CLOSE_S, PatientClient
from daskdecode.cluster.options import BATCH, LOCAL
from daskdecode.cluster.security import security_of
from daskdecode.cluster.spec import ClusterSpec, read_spec
from daskdecode.cluster.versions import check_versions
from daskdecode.errors import ClusterError, DaskDecodeError
from daskdecode.lost import said_of

_LOOK_S: Final = 3.0
"""How often a cluster without workers is asked whether there is any hope, seconds."""
logger = logging.getLogger("daskdecode")


def connect(
    spec: str | PathLike[str] | ClusterSpec = "local",
    *,
    n_workers: int | Sequence[int] | None = None,
    threads_per_worker: int | None = None,
    memory_limit: int | str | None = None,
    timeout_s: float | None = None,
    dashboard: bool | str | None = None,
    tls: bool | Mapping[str, str] | Security | None = None,
    **options: Any,
) -> Client:
    """Connect to workers, starting them where need be; from then on all of daskdecode works there.

    Parameters
    ----------
    spec : str or path-like
        - ``"local"``: processes on this machine, as many as suit its cores and memory; ``"threads"``: one process, this one.
        - ``"tcp://host:8786"``, ``"tls://host:8786"``: a scheduler that is running.
        - ``"slurm"``, ``"pbs"``, ``"sge"``, ``"lsf"``, ``"htcondor"``: jobs of a batch system, one worker each
          (``pip install "daskdecode[jobqueue]"``).
        - ``"kubernetes"``: pods, by way of Dask's operator (``pip install "daskdecode[kubernetes]"``).
        - ``"gateway"``: a cluster that a dask-gateway server starts (``pip install "daskdecode[gateway]"``).
        - A YAML file, as a site may ship it: ``kind:`` and any option.
    n_workers : int or (fewest, most), optional
        Workers to keep up: one that is lost is replaced. Two numbers: as many between them as there is work for. For ``"threads"``
        the number of threads. Default: on this machine what suits it, elsewhere 4.
    threads_per_worker : int, optional
        Cores of a worker.
    memory_limit : int or str, optional
        Memory of a worker, ``"8GB"`` or a number of bytes.
    timeout_s : float, optional
        Seconds to wait for the scheduler and as many for the first worker; and, whenever all workers have gone while there is work, for
        another. Default: 60 on this machine, 900 elsewhere, where workers may queue; but 30 for the first worker of a scheduler that is
        running.
    dashboard : bool or str, optional
        An address such as ``":8787"``. Default: a free port of the loopback interface, at ``client.dashboard_link``.
    tls : bool, mapping or Security, optional
        Encrypt and authenticate. True makes credentials for this cluster alone; a mapping names the files ``ca_file``, ``cert``, ``key``.
    **options
        Those of the kind, as in a YAML file: ``queue``, ``account``, ``walltime``, ``setup``, ``directives``, ``log_folder``, ... See
        docs/cluster.md.

    Returns
    -------
    distributed.Client
        The active scheduler of this process until it is closed. Closing it, or leaving a ``with`` block, also ends what was started
        here, and leaves alone a scheduler that was running before. What has not ended after a minute (a batch system or a server that does
        not answer) is left, and a warning in the log says what, and which command removes it.

    Raises
    ------
    ClusterSpecError
        The description is not understood, or a package is missing.
    ClusterError
        No scheduler answers or starts, or no worker came in time (then with the batch system's own reason, and with nothing left behind),
        or the workers run other code than this session. Later, from whatever works: workers died of it, or all went and none came back in
        time.

    Notes
    -----
    Batch jobs end before their walltime does: workers close at a random time before it, hand on what they hold, and are replaced.

    Examples
    --------
    >>> import daskdecode as dd
    >>> with dd.connect("threads", n_workers=2) as client:
    ...     client.submit(sum, [1, 2, 3]).result()
    6
    """
    given: dict[str, Any] = {"n_workers": n_workers, "threads_per_worker": threads_per_worker, "memory_limit": memory_limit}
    given |= {"timeout_s": timeout_s, "dashboard": dashboard, "tls": tls}
    described = read_spec(spec, given | options)
    security = security_of(described)
    return _to_running(described, security) if described.kind == "address" else _to_started(described, security)


def _to_running(spec: ClusterSpec, security: Security | None) -> Client:
    address = spec.options["address"]
    try:
        client = PatientClient(
            address,
            patience_s=spec.patience_s,
            why=lambda: "The scheduler is there: start workers for it (dask worker ADDRESS).",
            security=security,
            timeout=spec.timeout_s,
        )
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"No scheduler answers at {address} within {spec.timeout_s:g} s. Is it running, and can this machine reach it? "
            f"({said_of(error)})"
        ) from error
    return _ready(client, spec, lambda: None)


def _to_started(spec: ClusterSpec, security: Security | None) -> Client:
    family = "local" if spec.kind in LOCAL else "batch" if spec.kind in BATCH else spec.kind
    launcher = importlib.import_module(f"daskdecode.cluster.{family}")  # each needs packages of its own
    settings = {}
    if "allowed_failures" in spec.options:  # read when a scheduler starts
        settings["distributed.scheduler.allowed-failures"] = spec.options["allowed_failures"]
    try:
        with dask.config.set(settings):
            cluster = launcher.start(spec, security)
    except DaskDecodeError:
        raise
    except (RuntimeError, ValueError) as error:  # distributed wraps what the network says, more than once
        raise ClusterError(
            f"The scheduler does not start here ({spec.kind}): {said_of(_innermost(error))}. Is what is given of host=, interface= and "
            "dashboard= an address of this machine?"
        ) from error
    why, end = functools.partial(launcher.why_no_workers, cluster), functools.partial(_end, launcher, cluster)
    try:
        client = PatientClient(cluster, patience_s=spec.patience_s, why=why, end=end, timeout=spec.timeout_s)
    except BaseException:
        end()
        raise
    return _ready(client, spec, lambda: launcher.hopeless(cluster))


def _innermost(error: BaseException) -> BaseException:
    """What went wrong first."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _end(launcher: Any, cluster: Any) -> None:
    """Close a cluster, and say what may be left of it."""
    if left := launcher.close(cluster, CLOSE_S):
        logger.warning("%s", left)


def _ready(client: PatientClient, spec: ClusterSpec, hopeless: Callable[[], str | None]) -> Client:
    """Wait for a worker and look at what it runs; close the client, and all that it owns, where that fails."""
    try:
        _wait_for_worker(client, spec, hopeless)
        check_versions(client)
    except BaseException:
        client.close()
        raise
    return client


def _wait_for_worker(client: PatientClient, spec: ClusterSpec, hopeless: Callable[[], str | None]) -> None:
    until = time.monotonic() + spec.timeout_s
    seen = 0
    while (left := until - time.monotonic()) > 0:
        with contextlib.suppress(TimeoutError):
            client.wait_for_workers(1, timeout=min(_LOOK_S, left))
            return
        said = hopeless()
        seen = 0 if said is None else seen + 1
        if said is not None and seen > 1:  # a batch system may take a moment to list what it was given
            raise ClusterError(f"No worker will come ({spec.kind}). {said}")
    raise ClusterError(f"No worker came within {spec.timeout_s:g} s ({spec.kind}). {client.why()} timeout_s= waits longer.")
