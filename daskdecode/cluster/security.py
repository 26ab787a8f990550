"""TLS between client, scheduler and workers, where it is asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from distributed.security import Security

from daskdecode.cluster.spec import ClusterSpec
from daskdecode.errors import ClusterSpecError


def security_of(spec: ClusterSpec) -> Security | None:
    """What the option ``tls`` asks for; None where nothing is asked.

    Raises
    ------
    ClusterSpecError
        A file is missing, or the package that makes credentials.
    """
    tls = spec.get("tls", False)
    if isinstance(tls, Security):
        return tls
    if isinstance(tls, dict):
        return _from_files(tls)
    if spec.kind == "address":
        return _of_address(spec, asked=bool(tls))
    if not tls:
        return None
    if importlib.util.find_spec("cryptography") is None:
        raise ClusterSpecError("tls=True makes credentials with a package: pip install cryptography, or give files of your own.")
    made: Security = Security.temporary()
    return made


def _of_address(spec: ClusterSpec, *, asked: bool) -> Security | None:
    """Credentials for a scheduler that runs elsewhere: made ones would not be its own, so Dask's configuration has to name them."""
    if not asked and not spec.options["address"].startswith("tls://"):
        return None
    configured: Any = Security()
    if configured.tls_ca_file is None or configured.tls_client_cert is None:
        raise ClusterSpecError(
            f"{spec.options['address']} needs the credentials of its scheduler: give tls={{'ca_file': ..., 'cert': ..., 'key': ...}}, "
            "or set distributed.comm.tls in Dask's configuration."
        )
    found: Security = configured
    return found


def _from_files(files: dict[str, str]) -> Security:
    for name, path in files.items():
        if not Path(path).is_file():
            raise ClusterSpecError(f"tls: {name} is {path!r}, but there is no such file.")
    roles: dict[str, Any] = {}
    for role in ("client", "scheduler", "worker"):
        roles |= {f"tls_{role}_cert": files["cert"], f"tls_{role}_key": files["key"]}
    return Security(tls_ca_file=files["ca_file"], require_encryption=True, **roles)
