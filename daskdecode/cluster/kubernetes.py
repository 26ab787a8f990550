"""Pods by way of Dask's Kubernetes operator, from a manifest of our own.

dask-kubernetes would write one too, but it starts ``dask-scheduler`` and ``dask-worker``, which images of today no longer have.
"""

from __future__ import annotations

import math
import uuid
from typing import Any, Final

from distributed.security import Security

from daskdecode.cluster.batch import N_WORKERS, require
from daskdecode.cluster.bounded import within
from daskdecode.cluster.spec import ClusterSpec
from daskdecode.errors import ClusterError, ClusterSpecError
from daskdecode.lost import said_of

IMAGE: Final = "daskdecode:latest"
"""As ``deploy/docker`` builds it; clusters other than a local one need the name of a registry before it."""
_NAME: Final = "dask.org/cluster-name"
_STOP_S: Final = 10.0
"""Seconds to ask why, or to remove what has not started: Kubernetes may not answer at all."""


def start(spec: ClusterSpec, security: Security | None) -> Any:  # noqa: ARG001  # as of the other kinds
    """Ask the operator for a scheduler and workers, and wait for the scheduler.

    Raises
    ------
    ClusterSpecError
        dask-kubernetes is missing.
    ClusterError
        The operator does not do it in time: no cluster answers, the operator is not installed, the image cannot be fetched.
    """
    operator = require(spec.kind, "dask_kubernetes.operator", "kubernetes")
    begun: list[Any] = []

    class Cluster(operator.KubeCluster):  # type: ignore[name-defined,misc]
        """Known before it has started, which takes as long as Kubernetes likes."""

        def __init__(self, **given: Any) -> None:
            begun.append(self)
            super().__init__(**given)

    options = {"namespace": spec.get("namespace"), "resource_timeout": math.ceil(spec.timeout_s), "shutdown_on_close": True, "quiet": True}
    made = manifest(spec, f"daskdecode-{uuid.uuid4().hex[:8]}")
    fewest, most = spec.workers(N_WORKERS)

    def begin() -> Any:
        cluster = Cluster(custom_cluster_spec=made, **options)
        if fewest != most:
            cluster.adapt(minimum=fewest, maximum=most)
        return cluster

    try:
        return within(spec.timeout_s, begin, undo=lambda late: late.close())
    except TimeoutError as error:
        why = said_of(error) if str(error) else f"it has not within {spec.timeout_s:g} s"
        left = " ".join(close(cluster, _STOP_S) for cluster in begun)
        raise ClusterError(f"Kubernetes did not start a scheduler: {why}. {left}".rstrip()) from error
    except Exception as error:  # of half a dozen libraries below it, which share no class; what was begun is gone
        raise ClusterError(f"Kubernetes did not start a scheduler: {said_of(error)}.") from error
    except BaseException:  # Ctrl-C
        for cluster in begun:
            close(cluster, _STOP_S)
        raise


def close(cluster: Any, timeout_s: float) -> str:
    """End it. Returns what may be left, and what removes it."""
    try:
        within(timeout_s, lambda: cluster.close(timeout=timeout_s))
    except Exception as error:
        cluster.shutdown_on_close = False  # or it would be tried again, without a limit, at the end of the interpreter
        remove = f"kubectl delete daskcluster {cluster.name}" + (f" -n {cluster.namespace}" if cluster.namespace else "")
        return f"Kubernetes has not ended cluster {cluster.name} ({said_of(error)}), which may be left. Remove it: {remove}"
    return ""


def manifest(spec: ClusterSpec, name: str) -> dict[str, Any]:
    """A DaskCluster: what ``kubectl apply`` takes where the operator is installed.

    Parameters
    ----------
    spec : ClusterSpec
    name : str
        Of the cluster; Kubernetes wants at most 63 characters of ``a-z``, ``0-9`` and ``-``.

    Raises
    ------
    ClusterSpecError
        How large a worker should be is not said.
    """
    n_threads, nbytes = spec.get("threads_per_worker"), spec.get("memory_limit")
    if n_threads is None or nbytes is None:
        raise ClusterSpecError("How large a pod should be is said nowhere: give threads_per_worker= and memory_limit=.")
    work = [
        "dask",
        "worker",
        "--name",
        "$(DASK_WORKER_NAME)",
        "--nthreads",
        str(n_threads),
        "--memory-limit",
        str(nbytes),
        "--no-dashboard",
    ]
    worker = _pod(spec, "worker", work, {"cpu": str(n_threads), "memory": str(nbytes)})
    # A large graph is unpacked here: half a core and 2 GB carry some 10^5 tasks.
    scheduler = _pod(spec, "scheduler", ["dask", "scheduler", "--host", "0.0.0.0"], {"cpu": "500m", "memory": "2G"})
    container = scheduler["containers"][0]
    ports = {"tcp-comm": 8786, "http-dashboard": 8787}
    container["ports"] = [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()]
    container["readinessProbe"] = {"httpGet": {"port": "http-dashboard", "path": "/health"}, "initialDelaySeconds": 1, "periodSeconds": 2}
    service = {
        "type": "ClusterIP",
        "selector": {_NAME: name, "dask.org/component": "scheduler"},
        "ports": [{"name": port, "protocol": "TCP", "port": number, "targetPort": port} for port, number in ports.items()],
    }
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": name},
        "spec": {
            "worker": {"replicas": spec.workers(N_WORKERS)[0], "spec": worker},
            "scheduler": {"spec": scheduler, "service": service},
        },
    }


def _pod(spec: ClusterSpec, role: str, command: list[str], size: dict[str, str]) -> dict[str, Any]:
    """A pod of one container that may do nothing but compute."""
    volumes = spec.get("volumes", {})
    mounts = {path: f"volume-{n}" for n, path in enumerate(volumes)}
    environment = spec.get("environment", {})
    container: dict[str, Any] = {
        "name": role,
        "image": spec.get("image", IMAGE),
        "args": command,
        "resources": {"requests": size, "limits": dict(size)},
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}},
    }
    if environment:
        container["env"] = [{"name": name, "value": value} for name, value in environment.items()]
    if mounts:
        container["volumeMounts"] = [{"name": name, "mountPath": path} for path, name in mounts.items()]
    pod: dict[str, Any] = {"containers": [container]}
    if mounts:
        pod["volumes"] = [{"name": name, "persistentVolumeClaim": {"claimName": volumes[path]}} for path, name in mounts.items()]
    if account := spec.get("service_account"):
        pod["serviceAccountName"] = account
    return pod


def why_no_workers(cluster: Any) -> str:
    """What Kubernetes says of pods that do not run."""
    kr8s = require("kubernetes", "kr8s", "kubernetes")
    said = []
    try:
        of_workers = {_NAME: cluster.name, "dask.org/component": "worker"}
        for pod in within(_STOP_S, lambda: list(kr8s.get("pods", namespace=cluster.namespace, label_selector=of_workers))):
            said += _complaints(pod.name, pod.raw.get("status", {}))
    except Exception as error:
        return f"Kubernetes does not say why: {said_of(error)}."
    return " ".join(said[:3]) or "Kubernetes has made no pod for a worker: does its operator run (kubectl get pods -A)?"


def _complaints(pod: str, status: dict[str, Any]) -> list[str]:
    waiting = [state["state"]["waiting"] for state in status.get("containerStatuses", []) if "waiting" in state.get("state", {})]
    conditions = [condition for condition in status.get("conditions", []) if condition.get("status") == "False"]
    found = [f"{one.get('reason', '')}: {one['message']}" for one in [*waiting, *conditions] if one.get("message")]
    return [f"Kubernetes says of pod {pod}: {said}." for said in found]


def hopeless(cluster: Any) -> str | None:  # noqa: ARG001
    """Kubernetes tries again for ever, and often it comes right."""
    return None
