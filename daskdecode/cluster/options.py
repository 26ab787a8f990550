"""What can be said of a cluster: each option once, with how it is read and the kinds of cluster that it means something to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dask.utils import parse_bytes

LOCAL: Final = frozenset({"local", "threads"})
BATCH: Final = frozenset({"slurm", "pbs", "sge", "lsf", "htcondor"})
REMOTE: Final = frozenset({"kubernetes", "gateway"})
ADDRESS: Final = frozenset({"address"})
KINDS: Final = LOCAL | BATCH | REMOTE | ADDRESS
STARTED: Final = LOCAL | BATCH | REMOTE
"""Kinds of which :func:`daskdecode.connect` starts scheduler and workers."""

Walltime = int
"""Seconds."""

_LEAST_WALLTIME_S: Final = 300
_LEAST_NBYTES: Final = 10**6
"""Below it a unit was forgotten: nobody means 16 bytes."""


@dataclass(frozen=True)
class Option:
    """How an option is read, and for which kinds of cluster.

    Attributes
    ----------
    read : callable
        Takes what was given and returns what is meant; raises :class:`ValueError` with what was expected.
    kinds : frozenset of str
    """

    read: Callable[[Any], Any]
    kinds: frozenset[str]


def _number(lowest: float, *, whole: bool) -> Callable[[Any], Any]:
    def read(given: Any) -> Any:
        good = isinstance(given, int if whole else int | float) and not isinstance(given, bool)
        if not good or not math.isfinite(given) or given < lowest:
            raise ValueError(f"a {'whole ' if whole else ''}number of at least {lowest:g}")
        return given

    return read


def _text(given: Any) -> str:
    """A line of text; what goes on a line of a job script must not begin another."""
    if not isinstance(given, str) or not given.strip() or not given.isprintable():
        raise ValueError("text on one line")
    return given


def _lines(given: Any) -> list[str]:
    if isinstance(given, str) or not isinstance(given, list | tuple):
        raise ValueError("a list of lines of text")
    return [_text(line) for line in given]


def _path(given: Any) -> str:
    """A path that every batch system can carry: most have no way to quote one in the header of a job script."""
    path = _text(str(given))
    if re.search(r"[\s\"'\\;&|<>`$#%*?()\[\]{}!]", path):
        raise ValueError("a path without spaces, quotes and other characters that mean something to a shell or a batch system")
    return path


def _node_path(given: Any) -> str:
    """A path that a worker's own machine completes, such as ``$TMPDIR/dask``."""
    _path(re.sub(r"\$[A-Za-z_]\w*", "", str(given)) or "/")
    return str(given)


def _name(given: Any) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*", given):
        raise ValueError("a name of letters, digits and . _ : / @ + -")
    return given


def _workers(given: Any) -> int | tuple[int, int]:
    """A number that is kept up, or the fewest and the most between which it follows the work."""
    one = _number(1, whole=True)
    if not isinstance(given, list | tuple):
        return int(one(given))
    if len(given) != 2 or _number(0, whole=True)(given[0]) > one(given[1]):
        raise ValueError("a number, or the fewest and the most, such as [1, 20]")
    return (int(given[0]), int(given[1]))


def memory_nbytes(given: Any) -> int:
    """Read ``4GB``, or a number of bytes."""
    try:
        nbytes = int(parse_bytes(given))
    except (ValueError, TypeError, AttributeError, OverflowError):
        nbytes = 0
    if isinstance(given, bool) or nbytes < _LEAST_NBYTES:
        raise ValueError("a size such as 4GB (a number alone is bytes)")
    return nbytes


def _walltime(given: Any) -> Walltime:
    """Read ``04:00:00``, or ``2-00:00:00`` with days first."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", given) if isinstance(given, str) else None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    walltime = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    if walltime < _LEAST_WALLTIME_S:
        # 600 and 10:00 are what they are not: hours, minutes or seconds, as the batch system has it.
        raise ValueError(
            "at least five minutes, as HH:MM:SS or D-HH:MM:SS, all of it: what is shorter means other times to other batch systems"
        )
    return walltime


def clock(walltime: Walltime) -> str:
    """Write a walltime as Slurm, PBS and Grid Engine read it: ``HH:MM:SS``, with as many hours as it takes."""
    minutes, seconds = divmod(walltime, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


def _dashboard(given: Any) -> bool | str:
    if isinstance(given, bool):
        return given
    if not isinstance(given, str) or not re.fullmatch(r"\S*:\d+", given):
        raise ValueError("true, false, or an address such as ':8787' (every interface) or '127.0.0.1:8787'")
    return given


def _tls(given: Any) -> Any:
    """True (credentials made for this cluster), or the files ``ca_file``, ``cert`` and ``key``; a Security object passes as it is."""
    if isinstance(given, bool) or hasattr(given, "get_tls_config_for_role"):
        return given
    if not isinstance(given, Mapping) or set(given) != {"ca_file", "cert", "key"}:
        raise ValueError("true, or the three files ca_file, cert and key")
    return {name: _text(str(path)) for name, path in given.items()}


def _mapping(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ValueError("a mapping of names to values")
    return dict(given)


def _volumes(given: Any) -> dict[str, str]:
    """Names of persistent volume claims by the path at which pods see them."""
    return {_path(path): _name(claim) for path, claim in _mapping(given).items()}


def _environment(given: Any) -> dict[str, str]:
    return {_name(name): _text(str(value)) for name, value in _mapping(given).items()}


def _driver(given: Any) -> dict[str, Any]:
    """What the job of a submission's driver is like, where that is not as a worker's."""
    said = _mapping(given)
    unknown = sorted(set(said) - _OF_DRIVER)
    if unknown:
        raise ValueError(f"some of {', '.join(sorted(_OF_DRIVER))}, but not {unknown[0]}")
    read = {}
    for name, value in said.items():
        try:
            read[name] = OPTIONS[name].read(value)
        except ValueError as error:
            raise ValueError(f"{error} as its {name}") from None
    return read


_OF_DRIVER: Final = {"threads_per_worker", "memory_limit", "walltime", "queue", "account", "directives", "resource_spec", "disk"}


def _address(given: Any) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"(tcp|tls|ws|wss|ucx|inproc|http|https)://\S+", given):
        raise ValueError("an address such as tcp://host:8786 or tls://host:8786")
    return given


OPTIONS: Final[dict[str, Option]] = {
    # of any cluster
    "timeout_s": Option(_number(0.1, whole=False), KINDS),
    "tls": Option(_tls, KINDS - REMOTE),
    # of one that connect starts
    "n_workers": Option(_workers, STARTED),
    "threads_per_worker": Option(_number(1, whole=True), STARTED - {"threads"}),
    "memory_limit": Option(memory_nbytes, STARTED - {"threads"}),
    "dashboard": Option(_dashboard, LOCAL | BATCH),
    "allowed_failures": Option(_number(0, whole=True), LOCAL | BATCH),
    "local_folder": Option(_node_path, LOCAL | BATCH),
    "address": Option(_address, ADDRESS | {"gateway"}),
    # of batch systems
    "queue": Option(_name, BATCH - {"htcondor"}),
    "account": Option(_name, BATCH - {"htcondor"}),
    "walltime": Option(_walltime, BATCH),
    "resource_spec": Option(_text, frozenset({"pbs", "sge"})),
    "disk": Option(memory_nbytes, frozenset({"htcondor"})),
    "directives": Option(_lines, BATCH - {"htcondor"}),
    "setup": Option(_lines, BATCH),
    "python": Option(_path, BATCH),
    "log_folder": Option(_path, BATCH),
    "interface": Option(_name, BATCH),
    "host": Option(_name, BATCH),
    "driver": Option(_driver, BATCH),
    # of Kubernetes and gateways
    "namespace": Option(_name, frozenset({"kubernetes"})),
    "image": Option(_name, REMOTE),
    "service_account": Option(_name, frozenset({"kubernetes"})),
    "environment": Option(_environment, REMOTE),
    "volumes": Option(_volumes, frozenset({"kubernetes"})),
    "auth": Option(_name, frozenset({"gateway"})),
    "options": Option(_mapping, frozenset({"gateway"})),
}
"""Every option by name."""
