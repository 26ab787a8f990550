"""A cluster as it is described, by a word, an address or a YAML file that a site ships, checked before anything is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from daskdecode.cluster.options import KINDS, OPTIONS, STARTED
from daskdecode.errors import ClusterSpecError, nearest

_TIMEOUT_S = {"local": 60.0, "threads": 60.0}
_QUEUED_TIMEOUT_S = 900.0
_RUNNING_TIMEOUT_S = 30.0
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class ClusterSpec:
    """A kind of cluster and what was said of it.

    Attributes
    ----------
    kind : str
        One of :data:`~daskdecode.cluster.options.KINDS`.
    options : dict
        By the names of :data:`~daskdecode.cluster.options.OPTIONS`, as they are meant; what was not said is not there.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An option, or the default where nothing was said."""
        return self.options.get(name, default)

    @property
    def timeout_s(self) -> float:
        """Seconds to wait for a scheduler and a first worker."""
        return float(self.get("timeout_s", _RUNNING_TIMEOUT_S if self.kind == "address" else self.patience_s))

    @property
    def patience_s(self) -> float:
        """Seconds for which work waits once all workers have gone; those of a scheduler that was running may come out of a queue."""
        return float(self.get("timeout_s", _TIMEOUT_S.get(self.kind, _QUEUED_TIMEOUT_S)))

    def workers(self, default: int) -> tuple[int, int]:
        """The fewest and the most workers."""
        n = self.get("n_workers", default)
        return n if isinstance(n, tuple) else (n, n)


def read_spec(spec: Any, options: Mapping[str, Any]) -> ClusterSpec:
    """Read a description of a cluster.

    Parameters
    ----------
    spec : str, path-like or ClusterSpec
        A kind, the address of a scheduler, or a YAML file.
    options : mapping
        Said beside it, and stronger than what the file says; None stands for nothing said.

    Raises
    ------
    ClusterSpecError
        An unknown kind or option, one that means nothing to this kind, or a value that is not what it should be.
    """
    said = {name: value for name, value in options.items() if value is not None}
    if isinstance(spec, ClusterSpec):
        return replace(spec, options={**spec.options, **_checked(spec.kind, said, "connect()")})
    if not isinstance(spec, str | os.PathLike):
        raise ClusterSpecError(f"A cluster is named by a word, an address or a file, but found a {type(spec).__name__}. {_known()}")
    text = os.fspath(spec)
    if "://" in text:
        return ClusterSpec("address", _checked("address", {**said, "address": text}, "connect()"))
    if text in STARTED:
        return ClusterSpec(text, _checked(text, said, "connect()"))
    if text.endswith(_SUFFIXES) or isinstance(spec, os.PathLike) or os.sep in text:
        return _from_file(Path(text), said)
    raise ClusterSpecError(f"There is no kind of cluster {text!r}. {_known(text)}")


def _known(name: str = "") -> str:
    return f"{nearest(name, sorted(STARTED))} Or give an address such as tcp://host:8786, or a YAML file."


class _Loader(yaml.SafeLoader):
    """As :func:`yaml.safe_load`, but as YAML 1.2: 10:00 and 10:00:00 are text, not numbers in base 60, and a key is given once."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Return the tag of a node."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return self.DEFAULT_SCALAR_TAG if kind is yaml.ScalarNode and ":" in value and tag in _NUMBERS else tag

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Return a mapping; PyYAML would take the last of several values."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _from_file(path: Path, said: Mapping[str, Any]) -> ClusterSpec:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # as safe as its base
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterSpecError(f"The cluster file {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.YAMLError as error:
        raise ClusterSpecError(f"The cluster file {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or "kind" not in content:
        raise ClusterSpecError(f"The cluster file {path} does not say which kind of cluster it is: expected a line such as 'kind: slurm'.")
    kind = content.pop("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ClusterSpecError(f"{path}: there is no kind of cluster {kind!r}. {nearest(str(kind), sorted(KINDS))}")
    given = _checked(kind, {name: value for name, value in content.items() if value is not None}, str(path))
    if kind == "address" and "address" not in given:
        raise ClusterSpecError(f"{path}: a cluster of the kind 'address' needs address:, such as tcp://host:8786.")
    return ClusterSpec(kind, {**given, **_checked(kind, said, "connect()")})


def _checked(kind: str, said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options as they are meant."""
    found = {}
    for name, value in said.items():
        if name not in OPTIONS:
            of_kind = sorted(known for known, option in OPTIONS.items() if kind in option.kinds)
            raise ClusterSpecError(f"{where}: there is no option {name!r} for a cluster of the kind {kind!r}. {nearest(name, of_kind)}")
        option = OPTIONS[name]
        if kind not in option.kinds:
            raise ClusterSpecError(
                f"{where}: {name} means nothing to a cluster of the kind {kind!r}, only to {', '.join(sorted(option.kinds))}. Leave it out."
            )
        try:
            found[name] = option.read(value)
        except ValueError as error:
            raise ClusterSpecError(f"{where}: {name} is {value!r}: expected {error}.") from None
    return found
