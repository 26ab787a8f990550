"""Whether a store holds the conversion that is asked for, part of it, or another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daskdecode.store.plan import Plan, restrict


@dataclass(frozen=True)
class Comparison:
    """A conversion that is asked for, beside what the root of a store says.

    Attributes
    ----------
    other : str or None
        In what they differ, in words, so that the one cannot go on with the other.
    changed : dict of str to str
        Files that have changed since the conversion was interrupted, and their subjects.
    added : set of str
        Subjects that could not be converted then and are to be tried again.
    """

    other: str | None
    changed: dict[str, str]
    added: set[str]


def compare(root: Mapping[str, Any], plan: Plan) -> Comparison:
    """Compare what a store holds with what is asked for.

    A complete store may gain the subjects that failed, and nothing else. One whose conversion was interrupted may also lose subjects that
    fail now, and its sources may have changed.
    """
    old, new = root["plan"], plan.content
    olds, news = ({entry["subject"] for entry in content["subjects"]} for content in (old, new))
    added, lost = news - olds, olds - news
    if added - root.get("failed", {}).keys() or lost - (set() if root["complete"] else plan.failed.keys()):
        return Comparison(difference(old, new), {}, set())
    shared = [restrict(content, olds & news) for content in (old, new)]
    differs = difference(*shared)
    changed = None if root["complete"] or differs is None else changed_sources(*shared)
    return Comparison(differs if changed is None else None, changed or {}, added)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first thing in which two plans differ, in words; None where they are equal."""
    if old == new:
        return None
    old_files, new_files = ({source["path"]: source for source in plan["sources"]} for plan in (old, new))
    if old_files.keys() != new_files.keys():
        only_old, only_new = sorted(old_files.keys() - new_files.keys()), sorted(new_files.keys() - old_files.keys())
        missing = f"{len(only_old)} of its files are not among yours ({only_old[0]})" if only_old else ""
        added = f"{len(only_new)} of your files are not among its own ({only_new[0]})" if only_new else ""
        return "; ".join(filter(None, (missing, added)))
    for path, source in old_files.items():
        if source != new_files[path]:
            changed = [name for name in ("nbytes", "header_sha256", "mtime_ns") if source[name] != new_files[path][name]]
            words = {"nbytes": "size", "header_sha256": "header", "mtime_ns": "time of last change"}
            return f"{path} has changed since ({', '.join(words[name] for name in changed)})"
    old_runs, new_runs = ({run["node"]: run for run in plan["runs"]} for plan in (old, new))
    for node in old_runs.keys() | new_runs.keys():
        if old_runs.get(node) != new_runs.get(node):
            return f"labels, times, metadata or volumes of {node} are not the same"
    return "the brain mask or the regions of interest are not the same"


def changed_sources(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str] | None:
    """Files that have changed and their subjects, if two plans differ in nothing else; None where they differ in more.

    A changed file may have other volumes, and so other runs and labels; all else has to be the same.
    """
    if [source["path"] for source in old["sources"]] != [source["path"] for source in new["sources"]]:
        return None
    pairs = enumerate(zip(old["sources"], new["sources"], strict=True))
    changed = {n for n, (before, after) in pairs if before != after}
    if _unchanged(old["runs"], changed) != _unchanged(new["runs"], changed):
        return None
    subjects = {new["sources"][run["source"]]["path"]: run["subject"] for run in new["runs"] if run["source"] in changed}
    for before, after in zip(old["subjects"], new["subjects"], strict=True):
        loose = {"labels": None} if after["subject"] in subjects.values() else {}
        if {**before, **loose} != {**after, **loose}:
            return None
    return subjects


def _unchanged(runs: Sequence[Mapping[str, Any]], changed: set[int]) -> list[Mapping[str, Any]]:
    return [run for run in runs if run["source"] not in changed]
