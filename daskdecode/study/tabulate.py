"""The tables of a folder of results: everybody in it who was asked the same, whoever of them was decoded last."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from daskdecode._version import __version__
from daskdecode.alone import alone
from daskdecode.errors import DaskDecodeError
from daskdecode.models.splitters import natural_order
from daskdecode.store.layout import address, as_store
from daskdecode.store.open import StoredSubject
from daskdecode.study.record import FOLDER, Kept
from daskdecode.study.subject import Question
from daskdecode.study.tables import write_tables

Outcome = Mapping[str, Any]
Everyone = tuple[Mapping[str, StoredSubject], Mapping[str, str]]
"""The subjects of a store, and why others could not be converted."""

N_NAMED: Final = 5
"""Subjects that a message names before it counts."""
_PATIENCE_S: Final = 60.0
"""Writing tables takes moments, so who comes second waits."""


def attributes_of(store: Any, question: Question, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What was asked, in the words of :func:`daskdecode.results.scores.summarize`."""
    summary: Mapping[str, Any] = next((o["summary"] for o in outcomes if o["status"] == "done"), {})
    mask = question.decoder.mask
    asked = {
        "store": address(as_store(store, read_only=True)),
        "labels": question.labels,
        "mask": mask if isinstance(mask, str) else None,
        "session": question.session,
        "estimator": summary.get("estimator", " ".join(str(question.decoder.estimator).split())),
        "scoring": summary.get("scoring", str(question.decoder.scoring or "")),
        "tune": question.decoder.tune,
        "optimistic": int(summary.get("optimistic", False)),
        "n_permutations": int(question.permutations.n_permutations),
        "daskdecode_version": __version__,
    }
    return {key: value for key, value in asked.items() if value is not None}


def in_order(everyone: Everyone) -> list[str]:
    """All subjects: as they are in the store, or in their natural order where some could not be converted."""
    stored, unconverted = everyone
    names = [*stored, *unconverted]
    return names if not unconverted else [names[n] for n in np.argsort(natural_order(np.array(names)))]


def tabulate(folder: Path, store: Any, everyone: Everyone, question: Question, outcomes: Sequence[Outcome]) -> None:
    """Write the tables of a folder: what has just been found, and what earlier calls found for others with the same question.

    Parameters
    ----------
    folder : Path
        Of results.
    store : StoreLike
    everyone : tuple
        As :func:`daskdecode.store.open.stored_subjects` gives it.
    question : Question
    outcomes : sequence of mapping
        Of the subjects that this call was about.

    Warns
    -----
    UserWarning
        Others in the folder were asked something else, or their data or the versions of packages have changed: they are left out.
    """
    stored, _ = everyone
    with alone(folder / FOLDER / "tables.lock", f"Another run writes the tables of {folder}", DaskDecodeError, patience_s=_PATIENCE_S):
        found = {str(outcome["subject"]): outcome for outcome in outcomes}
        others = {}
        for name in in_order(everyone):
            if name not in found and (before := Kept(folder, name, question.session).read()) is not None:
                others[name] = before if _same(before, folder, stored.get(name), question) else None
        found |= {name: before for name, before in others.items() if before is not None}
        rows = [found[name] for name in in_order(everyone) if name in found]
        write_tables(folder, rows, attributes_of(store, question, rows))
    if otherwise := [name for name, before in others.items() if before is None]:
        more = f" and {len(otherwise) - N_NAMED} more" if len(otherwise) > N_NAMED else ""
        warnings.warn(
            f"The tables of {folder} leave out subject{'s' * (len(otherwise) > 1)} {', '.join(otherwise[:N_NAMED])}{more}: decoded there "
            "with other parameters, data or versions. The same call for all subjects decodes them again.",
            stacklevel=5,
        )


def _same(before: Outcome, folder: Path, stored: StoredSubject | None, question: Question) -> bool:
    """Whether an earlier outcome answers this question."""
    if before["status"] == "failed":
        return bool(before.get("question") == question.content)
    with contextlib.suppress(Exception):  # a mask that cannot be read, a store that is damaged: what was decoded is not known to be this
        return stored is not None and Kept(folder, stored.subject, question.session).done(question.fingerprint(stored)) is not None
    return False
