"""Everyone at once: all subjects of a store, each decoded as if it were alone."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from sklearn.base import clone

from daskdecode.cluster.spread import run_each
from daskdecode.errors import DaskDecodeError, DecodingError, SelectionError, nearest
from daskdecode.models.base import BaseDecoder
from daskdecode.progress import watch
from daskdecode.results.result import check_results_folder, entity_value
from daskdecode.schema import BOLD
from daskdecode.store.layout import StoreLike
from daskdecode.store.open import StoredSubject, open_study, stored_subjects
from daskdecode.study.record import Kept, claimed, claimed_at
from daskdecode.study.subject import DecodeSubject, Permutations, Question, wanted_labels
from daskdecode.study.tables import to_dataset
from daskdecode.study.tabulate import N_NAMED, attributes_of, in_order, tabulate

logger = logging.getLogger("daskdecode")


def decode_study(
    study: StoreLike | xr.DataTree,
    decoder: Any,
    *,
    labels: str | Sequence[str] | None = None,
    mask: Any = None,
    subjects: str | Sequence[str] | None = None,
    session: str | None = None,
    confounds: Any = None,
    folder: str | os.PathLike[str] | None = None,
    permutations: int = 0,
    exchange: str = "within_run",
    random_state: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Decode every subject of a study store on the active Dask scheduler, each by itself.

    Parameters
    ----------
    study : path, URL, Zarr store or DataTree
        A study store, or what :func:`daskdecode.open_study` returned of one, as it is: workers open the store by themselves.
    decoder : Decoder or DecoderRegressor
        Configured; it is not changed. Its ``memory_budget`` is that of one subject.
    labels : str or sequence of str, optional
        Conditions to tell apart, the same for all subjects. Default: all that the study has, but rest.
    mask : str, path, image, array or mapping, optional
        In the place of the decoder's own. A path may contain ``{subject}``, and a mapping gives each subject its mask.
    subjects : str or sequence of str, optional
        With or without ``sub-``. Default: all. The result has those that are named; the tables in `folder` also keep those that earlier
        calls decoded with the same question.
    session : str, optional
        Only this session. Default: all sessions of a subject together.
    confounds : path or mapping, optional
        For each subject a table as :func:`daskdecode.assign_confounds` takes it, a row a volume of all its runs: a path with ``{subject}``
        in it, or a mapping of subject to path or DataFrame. Each fold regresses all columns out.
    folder : path, optional
        Where results go: for each subject, as it ends, what :func:`daskdecode.write_results` and :func:`daskdecode.write_report` write;
        at the end ``study_scores.tsv`` (a row a subject, fold and class), ``study_subjects.tsv`` (a row a subject) and
        ``study_summary.json``, of everybody in the folder who was asked the same. All workers must see it. Default: nothing is written.
    permutations : int, default 0
        Permutations of a :func:`daskdecode.permutation_test` for each subject.
    exchange, random_state
        Of the permutation tests.
    progress : bool
        Show a bar, if it takes more than two seconds and stderr is a terminal.

    Returns
    -------
    Dataset
        Dims ``subject``, ``fold`` and ``class``; padded where subjects have fewer folds. Variables: ``score`` and ``chance`` (subject,
        fold, class), float64; for each fold ``accuracy``, ``balanced_accuracy`` and ``chance_accuracy`` (of a regression ``r2``,
        ``mean_absolute_error``, ``correlation`` and ``chance_r2``), float64, NaN where padded; ``n_train`` and ``n_test``, int64, 0 where
        padded; for each subject ``n_samples``, ``n_voxels``, ``status`` ("done" or "failed") and ``reason`` (text, empty where done).
        With permutations, ``pvalue`` (subject), ``class_pvalue`` and ``class_pvalue_fwe`` (subject, class). Coordinate ``test_runs``
        (subject, fold). Attributes say what was asked. Eager.

    Raises
    ------
    DecodingError, SelectionError, MemoryBudgetError
        No subject can be decoded: a parameter, label or mask is wrong for all. A DataTree was changed after it was opened, of which
        workers would not know. Two subjects are told apart only by what names of files leave out (``a-b`` and ``aB``). Before any data
        are read.
    DaskDecodeError
        The folder is a file, or somebody else's BIDS data set; another run decodes into it (says which process, where, since when).

    Warns
    -----
    UserWarning
        What fitting warns of, with the subjects concerned. Subjects in the folder whose results answer another question (other labels,
        parameters, data or versions) and are not among those named: the tables leave them out.

    Notes
    -----
    A subject that cannot be decoded, or could not be converted, or whose worker is killed again and again, is recorded with the reason
    (``status``, ``reason``, the tables, ``.daskdecode/sub-<subject>.json`` in `folder`) and stops nobody else.

    With `folder`, subjects that are there already are not decoded again, as long as their data, the parameters and the versions of the
    packages are the same and none of their files has gone; failed ones are tried again. Results appear whole or not at all, so a call
    that was killed is simply repeated.

    One task a subject: it opens its own input and returns the scores only. On a :class:`distributed.Client` each worker takes one subject
    at a time and uses all its threads for it; memory is that of :meth:`Decoder.explain` for one subject a worker, within seven tenths of
    the worker's memory limit less what Python itself takes. On any other scheduler subjects follow one another.

    Examples
    --------
    >>> scores = dd.decode_study("study.zarr", dd.Decoder("svc"), labels=["face", "cat"], folder="results")    # doctest: +SKIP
    >>> scores.accuracy.mean("fold")                                                                           # doctest: +SKIP
    >>> scores.reason[scores.status == "failed"]                                                               # doctest: +SKIP
    """
    outcomes, attributes = decode_subjects(
        study,
        decoder,
        labels=labels,
        mask=mask,
        subjects=subjects,
        session=session,
        confounds=confounds,
        folder=folder,
        permutations=Permutations(permutations, exchange, random_state),
        progress=progress,
    )
    return to_dataset(outcomes, attributes)


def decode_subjects(
    study: StoreLike | xr.DataTree,
    decoder: Any,
    *,
    labels: str | Sequence[str] | None = None,
    mask: Any = None,
    subjects: str | Sequence[str] | None = None,
    session: str | None = None,
    confounds: Any = None,
    folder: str | os.PathLike[str] | None = None,
    permutations: Permutations,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """:func:`decode_study`, as a record a subject and what was asked of all."""
    if not isinstance(decoder, BaseDecoder):
        raise DecodingError(f"A study is decoded with a daskdecode.Decoder or DecoderRegressor; found {type(decoder).__name__}.")
    _check_permutations(permutations)
    store: Any = _store_of(study) if isinstance(study, xr.DataTree) else study
    stored, unconverted = everyone = stored_subjects(store)
    chosen = _chosen(subjects, in_order(everyone), store)
    if folder is not None:
        _check_files_apart(chosen)
    known = _labels(labels, stored)
    stored = {name: stored[name] for name in chosen if name in stored}
    asked = clone(decoder).set_params(progress=None, **({} if mask is None else {"mask": mask}))
    _check_confounds(confounds, len(stored))
    question = Question(asked, known, session, permutations, str(Path.cwd()), confounds)
    target = None if folder is None else check_results_folder(folder).absolute()
    with contextlib.nullcontext() if target is None else claimed(target):
        found = {name: _unconverted(name, why, question, target) for name, why in unconverted.items() if name in chosen}
        found |= _done(stored, question, target)
        since = math.inf if target is None else claimed_at(target)
        pending = {name: DecodeSubject(s, question, target, since) for name, s in stored.items() if name not in found}
        if pending and not any(outcome["status"] == "done" for outcome in found.values()):
            _check_any(pending)
        found |= _run(pending, progress=progress)
        outcomes = [found[name] for name in chosen]
        if target is not None:
            tabulate(target, store, everyone, question, outcomes)
    _warn(outcomes)
    return outcomes, attributes_of(store, question, outcomes)


# --- what is asked ----------------------------------------------------------------------------------------------------------------


def _store_of(tree: xr.DataTree) -> Any:
    """Where a tree was opened from. Workers open the store, so that what was done to the tree since would silently be left out."""
    store = tree.attrs.get("store")
    if store is None:
        raise DecodingError("The DataTree does not say which store it is of: pass the store, or what daskdecode.open_study gives for it.")
    stored = open_study(store)
    given, known = ({node.path: node.to_dataset() for node in t.subtree if BOLD in node.ds} for t in (tree, stored))
    changed = [path for path in {**known, **given} if path not in given or path not in known or not _is_same(given[path], known[path])]
    if changed:
        raise DecodingError(
            f"{changed[0]} of the DataTree is not as it is in {store}, and decode_study reads the store: pass the store, and say which "
            "subjects, labels, mask, confounds and scaling (of the decoder) are meant. Data that were changed in other ways are "
            "decoded one by one: decoder.fit(ds)."
        )
    return store


def _is_same(ds: xr.Dataset, stored: xr.Dataset) -> bool:
    """Whether a dataset is as it was opened: Dask names what is computed from the signals otherwise."""
    lazily = getattr(ds[BOLD].data, "name", None) == stored[BOLD].data.name
    return lazily and ds.drop_vars(BOLD).equals(stored.drop_vars(BOLD))


def _check_permutations(asked: Permutations) -> None:
    n = asked.n_permutations
    if isinstance(n, bool) or not hasattr(n, "__index__") or n < 0:
        raise DecodingError(f"permutations={n!r} must be a whole number, 0 for no test.")
    if asked.exchange not in ("within_run", "blocks"):
        raise DecodingError(f"Unknown exchange={asked.exchange!r}. {nearest(str(asked.exchange), ['within_run', 'blocks'])}")


def _check_confounds(confounds: Any, n_subjects: int) -> None:
    """One table cannot hold the confounds of several subjects."""
    of_each = isinstance(confounds, Mapping) or "{subject}" in str(confounds)
    if confounds is not None and not of_each and n_subjects > 1:
        raise SelectionError(
            f"confounds= is one table, but there are {n_subjects} subjects: give a path with {{subject}} in it, such as "
            "'confounds/sub-{subject}.tsv', or choose one subject."
        )


def _chosen(subjects: str | Sequence[str] | None, known: list[str], store: Any) -> list[str]:
    """Names of the subjects that are asked for."""
    if subjects is None:
        return known
    names = [str(name).removeprefix("sub-") for name in ([subjects] if isinstance(subjects, str) else subjects)]
    for name in names:
        if name not in known:
            raise SelectionError(f"There is no subject {name!r} in {store}. {nearest(name, known)}")
    if not names:
        raise SelectionError("subjects=[] names nobody: leave it out for all subjects.")
    return list(dict.fromkeys(names))


def _check_files_apart(names: Sequence[str]) -> None:
    """Names of files hold letters and digits only, and some file systems do not tell case apart: no two subjects may share theirs."""
    first_with: dict[str, str] = {}
    for name in names:
        value = entity_value(name)
        if (other := first_with.setdefault(value.lower(), name)) != name:
            raise SelectionError(
                f"The results of the subjects {other!r} and {name!r} would lie in the same files (sub-{value}): decode them one at a "
                "time, each into a folder of its own."
            )


def _labels(labels: str | Sequence[str] | None, stored: Mapping[str, StoredSubject]) -> list[str]:
    """Labels to tell apart; each is known to a subject at least."""
    known = sorted({label for subject in stored.values() for label in subject.labels})
    wanted = wanted_labels(labels, known) if known or labels is None else []
    for label in wanted:
        if label not in known:
            raise SelectionError(f"No volume of any subject has the label {label!r}. {nearest(label, known)}")
    return wanted


def _unconverted(name: str, why: str, question: Question, folder: Path | None) -> dict[str, Any]:
    """Outcome of a subject that is not in the store; what was found when it was there is kept, should it come back."""
    outcome = question.failure(name, DaskDecodeError(f"It could not be converted: {why}"))
    if folder is not None and ((before := (kept := Kept(folder, name, question.session)).read()) is None or before["status"] == "failed"):
        kept.keep(outcome)
    return outcome


def _done(stored: Mapping[str, StoredSubject], question: Question, folder: Path | None) -> dict[str, dict[str, Any]]:
    """Outcomes of subjects that need not be decoded again."""
    found: dict[str, dict[str, Any]] = {}
    if folder is None:
        return found
    for name, subject in stored.items():
        kept = Kept(folder, name, question.session)
        # A mask that cannot be read, a store that is damaged: decoding says so, and records it.
        with contextlib.suppress(Exception):
            if kept.exists and (outcome := kept.done(question.fingerprint(subject))) is not None:
                found[name] = outcome
    if found:
        logger.info("%d subjects are decoded already.", len(found))
    return found


def _check_any(pending: Mapping[str, DecodeSubject]) -> None:
    """Raise what is wrong with the first subject, if something is with each: a wrong parameter is found before anything is read."""
    wrong: dict[str, Exception] = {}
    for name, piece in pending.items():
        try:
            piece.check()
        except Exception as error:
            wrong[name] = error
        else:
            return
    name, first = next(iter(wrong.items()))
    if len(wrong) > 1 and isinstance(first, DaskDecodeError):
        raise type(first)(f"None of {len(wrong)} subjects can be decoded. Subject {name}: {first}") from first
    raise first


# --- doing it ---------------------------------------------------------------------------------------------------------------------


def _run(pending: Mapping[str, DecodeSubject], *, progress: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Outcomes of subjects as they end."""
    n_ended = 0
    with watch("Decoding subjects", lambda: (n_ended, len(pending)), progress=progress):
        for name, found in run_each(pending):
            n_ended += 1
            outcome = pending[name].question.failure(name, found) if isinstance(found, Exception) else found
            if isinstance(found, Exception) and (folder := pending[name].folder) is not None:  # its worker could not say so
                with contextlib.suppress(OSError):
                    Kept(folder, name, pending[name].question.session).keep(outcome)
            if outcome["status"] == "failed":
                logger.warning("Subject %s failed: %s", name, outcome["reason"])
            else:
                logger.info("Subject %s is decoded (%d of %d).", name, n_ended, len(pending))
            yield name, outcome


def _warn(outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Say once what several subjects are to be warned of."""
    concerned: dict[str, list[str]] = {}
    for outcome in outcomes:
        for note in outcome.get("notes", ()):
            concerned.setdefault(note, []).append(outcome["subject"])
    for note, names in concerned.items():
        more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
        warnings.warn(f"Subject{'s' * (len(names) > 1)} {', '.join(names[:N_NAMED])}{more}: {note}", stacklevel=4)
