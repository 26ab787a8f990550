"""One subject: selected, decoded, written; the same whether it is decoded alone or as one of a study."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import xarray as xr
from sklearn.base import clone

from daskdecode.data.confounds import assign_confounds
from daskdecode.data.mask import mean_image
from daskdecode.data.select import select_labels
from daskdecode.engine.plan import memory_budget
from daskdecode.errors import DaskDecodeError, SelectionError
from daskdecode.models.content import NOT_CONTENT
from daskdecode.models.outcome import versions
from daskdecode.models.permutation import permute
from daskdecode.results.report import write_report
from daskdecode.results.result import file_stem, join_entities, json_writer, results_folder, write_files, write_results
from daskdecode.results.scores import score_table, summarize
from daskdecode.schema import REST, TIME, mask_names, run_ids
from daskdecode.store.layout import digest
from daskdecode.store.masks import for_subject
from daskdecode.store.open import StoredSubject
from daskdecode.study import record

_PLENTY: Final = 2**62


@dataclass(frozen=True)
class Permutations:
    """What :func:`daskdecode.permutation_test` is asked for; none where ``n_permutations`` is 0."""

    n_permutations: int = 0
    exchange: str = "within_run"
    random_state: int = 0


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of every subject.

    Attributes
    ----------
    decoder : Decoder or DecoderRegressor
        Not fitted.
    labels : list of str
    session : str or None
    permutations : Permutations
    where : str
        The folder that relative paths start from.
    confounds : path, DataFrame or mapping, optional
        A table for :func:`daskdecode.assign_confounds`; each fold regresses all its columns out. A path may contain ``{subject}``.
    """

    decoder: Any
    labels: list[str]
    session: str | None
    permutations: Permutations
    where: str
    confounds: Any = None

    def prepare(self, whole: xr.Dataset, subject: str, nbytes: int | None) -> tuple[xr.Dataset, Any]:
        """Return what is to be decoded of a subject, lazy, and a decoder of its own."""
        table = for_subject(self.confounds, subject)
        if table is None:
            ds = select_labels(whole, self.labels)
            return ds, self._decoder_for(subject, mask_names(ds), nbytes)
        ds = assign_confounds(whole, Path(self.where, table) if isinstance(table, str) else table)
        added = [str(name) for name in ds.coords if name not in whole.coords]
        ds = select_labels(ds, self.labels)
        return ds, self._decoder_for(subject, mask_names(ds), nbytes).set_params(confounds=added)

    def _decoder_for(self, subject: str, masks: Sequence[str], nbytes: int | None) -> Any:
        """Return a decoder with the subject's mask, which takes no more memory than it may."""
        decoder = clone(self.decoder)
        mask = for_subject(decoder.mask, subject)
        if isinstance(mask, str) and mask not in masks and str(Path.cwd()) != self.where:
            mask = str(Path(self.where, mask))  # an absolute one stays as it is
        given = decoder.memory_budget
        if nbytes is not None:
            given = nbytes if given is None else min(nbytes, memory_budget(given))
        return decoder.set_params(mask=mask, memory_budget=given, progress=None)

    def fingerprint(self, stored: StoredSubject) -> str:
        """Digest of all that decides the results of a subject: its data, what is asked of them, and the code that answers."""
        content = stored.content(self.session)
        mask = for_subject(self.decoder.mask, stored.subject)
        return digest(
            {
                "runs": content["runs"],
                "mask": record.mask_content(mask, content["masks"], self.where),
                "confounds": record.table_content(for_subject(self.confounds, stored.subject), self.where),
                **self._asked,
                "versions": versions(),
            }
        )

    @property
    def content(self) -> str:
        """Digest of what is asked, whoever is asked. Masks and tables by their names: who failed may have failed for want of theirs."""
        named = {name: str(value) for name, value in (("mask", self.decoder.mask), ("confounds", self.confounds)) if _is_name(value)}
        return digest({**self._asked, **named, "session": self.session})

    @property
    def _asked(self) -> dict[str, Any]:
        asked = {name: value for name, value in self.decoder.get_params(deep=False).items() if name not in NOT_CONTENT}
        return {
            "decoder": [type(self.decoder).__name__, record.shown_all(asked)],
            "labels": sorted(self.labels),
            "permutations": record.shown_all(vars(self.permutations)),
        }

    def failure(self, subject: str, error: BaseException) -> dict[str, Any]:
        """Return the outcome of a subject that could not be decoded."""
        return record.failure(subject, error) | {"question": self.content}


@dataclass(frozen=True, eq=False)
class DecodeSubject:
    """The work of one task: opens, decodes and writes a subject. A call never raises for a reason of the subject's own: it is recorded.

    Attributes
    ----------
    stored : StoredSubject
    question : Question
    folder : Path or None
        Where results go, absolute; None: nowhere.
    since : float
        When the run that this is part of claimed the folder. A worker may go on after its driver was killed: results do not get among those
        of a later run.
    """

    stored: StoredSubject
    question: Question
    folder: Path | None
    since: float = math.inf

    def __call__(self, nbytes: int | None) -> dict[str, Any]:
        """Do it, within a number of bytes if one is given; return what :mod:`daskdecode.study.record` keeps."""
        self._require_folder()
        try:
            return self.outcome(nbytes)
        except Exception as error:
            return self.failed(error)

    def failed(self, error: Exception) -> dict[str, Any]:
        """Return the outcome of a subject that could not be decoded, once it is kept."""
        found = self.question.failure(self.stored.subject, error)
        if self._kept is not None:
            with contextlib.suppress(DaskDecodeError):
                self._kept.require_latest(self.since)
                self._kept.keep(found)
        return found

    def outcome(self, nbytes: int | None = None, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """As a call, but what goes wrong is raised."""
        kept = self._kept
        if kept is None:
            return self._decode(nbytes, None, progress)
        fingerprint = self.question.fingerprint(self.stored)
        if (before := kept.done(fingerprint)) is not None:  # earlier, or on a worker that died before it could say so
            return before
        kept.require_latest(self.since)
        kept.forget()
        found = self._decode(nbytes, kept.partial(fingerprint), progress)
        kept.keep(found | {"fingerprint": fingerprint})
        return found

    @property
    def _kept(self) -> record.Kept | None:
        return None if self.folder is None else record.Kept(self.folder, self.stored.subject, self.question.session)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep other runs from the results of this subject; who decodes the whole study has said so for all of them."""
        return contextlib.nullcontext() if self._kept is None else self._kept.alone()

    def check(self, nbytes: int | None = _PLENTY) -> None:
        """Raise what can be known to be wrong without reading data, by default whatever memory there is."""
        ds, decoder = self.question.prepare(self.stored.open(self.question.session), self.stored.subject, nbytes)
        decoder.explain(ds)

    def _require_folder(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise DaskDecodeError(
                f"The worker on {platform.node()} does not see the results folder {self.folder}: name one that all workers share."
            )

    def _decode(self, nbytes: int | None, partial: Path | None, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
        whole = self.stored.open(self.question.session)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            how: dict[str, Any] = {"nbytes": nbytes, "partial": partial, "progress": progress}
            decoder, test = fit_subject(whole, self.stored.subject, self.question, **how)
        written: dict[str, Any] = {}
        if self.folder is not None and self._kept is not None:
            self._kept.require_latest(self.since)
            written = write_subject(decoder, whole, self.folder, permutations=test)
        return {
            "subject": self.stored.subject,
            "status": "done",
            "reason": "",
            "summary": summarize(decoder),
            "scores": score_table(decoder).to_dict("records"),
            "folds": decoder.cv_metrics_.reset_index().to_dict("records"),
            "permutations": test,
            "notes": list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning))),
            **written,
        }


def fit_subject(
    whole: xr.Dataset,
    subject: str,
    question: Question,
    *,
    nbytes: int | None = None,
    partial: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, dict[str, Any] | None]:
    """Decode a subject.

    Parameters
    ----------
    whole : Dataset
        With all its volumes and voxels.
    subject : str
    question : Question
    nbytes : int, optional
        Memory that this may take.
    partial : path, optional
        File for permutations that are done; one that is there is gone on from.
    progress : callable, optional
        Called with what is done and how much there is.

    Returns
    -------
    decoder : Decoder or DecoderRegressor
        Fitted.
    test : dict or None
        ``PermutationTest.to_dict()``.
    """
    ds, decoder = question.prepare(whole, subject, nbytes)
    asked, test = question.permutations, None
    if asked.n_permutations:
        options: dict[str, Any] = {"exchange": asked.exchange, "random_state": asked.random_state, "path": partial, "progress": progress}
        test = permute(decoder, ds, n_permutations=asked.n_permutations, **options).to_dict()
    return decoder.set_params(progress=progress).fit(ds), test


def _is_name(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def wanted_labels(labels: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The labels to tell apart: all but rest, or those named, singly or separated by commas (a label may have a comma itself).

    Raises
    ------
    SelectionError
        None are named, and there is nothing but rest.
    """
    if labels is None:
        found = [name for name in known if name != REST]
        if not found:
            raise SelectionError(
                f"Only {REST!r} is in the store: were events or labels missing at the conversion? Convert again with them."
            )
        return found
    labels = [labels] if isinstance(labels, str) else labels
    split = [[label] if label in known else [name.strip() for name in label.split(",") if name.strip()] for label in labels]
    return [name for names in split for name in names]


def background(ds: xr.Dataset) -> nib.Nifti1Image:
    """Mean image of the first run: by eye the same as that of all runs, without reading all of them again."""
    runs = run_ids(ds)
    return mean_image(ds.isel({TIME: np.flatnonzero(runs == runs[0])}))


def write_subject(
    decoder: Any,
    whole: xr.Dataset,
    output: Path,
    *,
    permutations: Mapping[str, Any] | None = None,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write results, report and, if there is one, the permutation test; return where they are.

    Parameters
    ----------
    decoder : Decoder or DecoderRegressor
        Fitted.
    whole : Dataset
        The subject, with all its volumes and voxels: the background of the report's maps.
    output : Path
    permutations : mapping, optional
        ``PermutationTest.to_dict()``.
    title, notes
        See :func:`daskdecode.write_report`.

    Returns
    -------
    dict
        ``report``: its name in `output`; ``files``: the names of all that was written for this subject, below `output`.
    """
    write_results(decoder, output)
    stem, target = file_stem(decoder), results_folder(decoder, output)
    tested = join_entities(stem, "desc-decoding_permutations.json")
    (target / tested).unlink(missing_ok=True)  # of an earlier analysis
    if permutations is not None:
        write_files(target, {tested: json_writer(permutations)})
    report = join_entities(stem, "desc-decoding_report.html")
    write_report(decoder, output / report, background=background(whole), title=title, notes=notes)
    of_subject = [path.relative_to(output).as_posix() for path in target.glob(join_entities(stem, "*")) if path.is_file()]
    return {"report": report, "files": sorted({*of_subject, report})}
