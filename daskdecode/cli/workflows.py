"""The library called in order, as the commands need it; nothing is worked out here that the library does not offer to all."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import xarray as xr
from sklearn.model_selection import GroupKFold

from daskdecode.cli.command import progress_bar
from daskdecode.data.mask import apply_mask
from daskdecode.data.pool import pool_subjects
from daskdecode.data.select import select_labels
from daskdecode.errors import DaskDecodeError
from daskdecode.models.content import shown
from daskdecode.models.decoder import Decoder
from daskdecode.results.result import check_results_folder
from daskdecode.results.scores import summarize
from daskdecode.schema import LABEL, SUBJECT
from daskdecode.sources.simulate import simulate_study
from daskdecode.store.convert import convert
from daskdecode.store.layout import digest
from daskdecode.store.open import open_subject, stored_subjects
from daskdecode.study.decode import decode_subjects
from daskdecode.study.record import claimed, partial
from daskdecode.study.subject import DecodeSubject, Permutations, Question, fit_subject, wanted_labels, write_subject
from daskdecode.study.tables import has_tables, summarize_study
from daskdecode.study.tabulate import tabulate

if TYPE_CHECKING:
    from daskdecode.tuning.result import SearchResult


def check_places(
    store: str,
    output: Path | None = None,
    *,
    subjects: Sequence[str] = (),
    session: str | None = None,
    labels: Sequence[str] | None = None,
    **_: Any,
) -> None:
    """Say what is wrong with the store, the folder for results or, of one subject, its name and labels; reads no signals."""
    if output is not None:
        check_results_folder(output)
    stored, unconverted = stored_subjects(store)
    named = list(subjects) or [*stored, *unconverted]
    if len(named) == 1:  # of several, one that lacks a label stops nobody else
        ds = open_subject(store, named[0], session)
        select_labels(ds, wanted_labels(labels, np.unique(ds[LABEL].values.astype(str)).tolist()))


def run_decode(
    store: str,
    output: Path,
    *,
    labels: Sequence[str] | None,
    subjects: Sequence[str],
    session: str | None,
    mask: str | None,
    space: Mapping[str, Any],
    standardize: str,
    confounds: Path | None,
    permutations: int,
    exchange: str,
    random_state: int,
    progress: bool,
    **options: Any,
) -> dict[str, Any]:
    """Decode one subject of a store, or several, all where none is named, and write everything to a folder.

    Returns
    -------
    dict
        Of one subject: :func:`daskdecode.results.scores.summarize`, the p value if there is one, and the paths ``results`` and
        ``report``. Of several: what :func:`daskdecode.study.tables.summarize_study` says, ``results``, and ``subjects``: the same as for
        one, with ``status`` and ``reason``.
    """
    check_results_folder(output)
    decoder = Decoder(mask=mask, param_grid=dict(space) or None, standardize=_scaling(standardize), **options)
    asked = Permutations(permutations, exchange, random_state)
    stored, unconverted = stored_subjects(store)
    if len(subjects) > 1 or (not subjects and len(stored) + len(unconverted) > 1):
        which = {"labels": labels, "subjects": subjects or None, "session": session, "confounds": confounds}
        return _run_study(store, decoder, output, **which, permutations=asked, progress=progress)
    whole = open_subject(store, subjects[0] if subjects else None, session)
    wanted = wanted_labels(labels, np.unique(whole[LABEL].values.astype(str)).tolist())
    question = Question(decoder, wanted, session, asked, str(Path.cwd()), confounds)
    piece = DecodeSubject(stored[whole.attrs[SUBJECT]], question, output.absolute())
    with piece.alone():
        piece.check(None)
        tell = functools.partial(_tell_tables, output.absolute(), store, (stored, unconverted), question)
        try:
            with progress_bar("Decoding", show=progress) as moved:
                found = piece.outcome(progress=moved)
        except BaseException as error:
            # Its results may have been replaced in part. What went wrong first is told, whatever follows from it.
            with contextlib.suppress(Exception):
                tell(piece.failed(error if isinstance(error, Exception) else DaskDecodeError("It was interrupted.")))
            raise
        tell(found)
    for note in found["notes"]:
        warnings.warn(note, stacklevel=2)
    test = found["permutations"]
    tested = {} if test is None else {"pvalue": test["pvalue"], "n_permutations": test["n_permutations"]}
    summary: dict[str, Any] = found["summary"]
    return summary | tested | {"results": str(output), "report": str(output / found["report"])}


def _tell_tables(folder: Path, store: str, everyone: Any, question: Question, outcome: Mapping[str, Any]) -> None:
    """Bring the tables of a study up to date, where there are some."""
    if has_tables(folder):
        tabulate(folder, store, everyone, question, [outcome])


def _scaling(said: str) -> Any:
    return None if said == "none" else said


def _run_study(store: str, decoder: Decoder, output: Path, **options: Any) -> dict[str, Any]:
    outcomes, attributes = decode_subjects(store, decoder, folder=output, **options)
    each = [
        {
            **outcome.get("summary", {"subject": outcome["subject"]}),
            **({"pvalue": outcome["permutations"]["pvalue"]} if outcome.get("permutations") else {}),
            **({"report": str(output / outcome["report"])} if "report" in outcome else {}),
            "status": outcome["status"],
            "reason": outcome["reason"],
        }
        for outcome in outcomes
    ]
    return summarize_study(outcomes, attributes) | {"results": str(output), "subjects": each}


def run_search(
    store: str,
    output: Path | None,
    *,
    space: Mapping[str, Any],
    method: Any,
    route: Any,
    n_iter: int,
    n_passes: int,
    random_state: int,
    nested: bool,
    labels: Sequence[str] | None,
    subjects: Sequence[str],
    session: str | None,
    standardize: str,
    confounds: Path | None,
    error_score: Any,
    progress: bool,
    **options: Any,
) -> SearchResult:
    """Search hyperparameters of one subject of a store, or of several pooled; with a folder, keep there what is done, and go on from it."""
    from daskdecode.tuning.search import search, settings_of  # dask-ml is not quick to import

    if output is not None:
        check_results_folder(output)
    pools = method == "hyperband" or route == "stream"
    _check_fits_together(options, subjects, method, pools=pools)
    cv = GroupKFold(options["cv"]) if pools and options["cv"] != "run" else options["cv"]
    decoder = Decoder(standardize=_scaling(standardize), **{**options, "cv": cv})
    ds, decoder, of_subjects = _of_search(store, subjects, decoder, labels, session, confounds, pools=pools)
    how: dict[str, Any] = {"method": method, "n_iter": n_iter, "random_state": random_state, "nested": nested, "error_score": error_score}
    how |= {"route": route, "n_passes": n_passes}
    with contextlib.ExitStack() as stack:
        path = None
        if output is not None:
            settings = [shown(setting) for setting in settings_of(space, "grid" if method == "grid" else "random", n_iter, random_state)]
            stack.enter_context(claimed(output, "search"))
            asked = [of_subjects, settings, nested, repr(error_score), *([method, n_iter, n_passes, random_state] if pools else [])]
            path = partial(output, "search", digest(asked), kind="models" if method == "hyperband" else "npz")
        moved = stack.enter_context(progress_bar("Searching", show=progress))
        found = search(decoder, ds, space, **how, refit=False, path=path, progress=moved)
        if output is not None:
            found.write(output)
    return found


def _check_fits_together(options: Mapping[str, Any], subjects: Sequence[str], method: str, *, pools: bool) -> None:
    """Refuse options of a search that would be passed over."""
    if not pools and len(subjects) > 1:
        raise DaskDecodeError(
            f"A {method} search is of one subject, and {len(subjects)} are named: several are pooled by --route stream and by --method "
            "hyperband, and decoded each by itself by daskdecode decode."
        )
    if pools and options["engine"] != "auto":
        raise DaskDecodeError("--engine is for searches of one subject: samples that are read block by block are seen as voxels.")
    if method == "hyperband" and options["cv"] != "run":
        raise DaskDecodeError("--cv is for grid and random searches: Hyperband holds out a fifth of the subjects, or of the runs of one.")


def _of_search(
    store: str,
    subjects: Sequence[str],
    decoder: Decoder,
    labels: Sequence[str] | None,
    session: str | None,
    confounds: Path | None,
    *,
    pools: bool,
) -> tuple[xr.Dataset, Decoder, list[str]]:
    """What is searched on, the decoder for it, and a digest of each subject."""
    stored, unconverted = stored_subjects(store)
    names: list[Any] = list(subjects) or (list(stored) if pools else [None])
    if pools and not subjects:
        for name, why in unconverted.items():
            warnings.warn(f"Subject {name} is not in the store and left out: {why}", stacklevel=2)
    whole = [open_subject(store, name, session) for name in names]
    known = np.unique(np.concatenate([ds[LABEL].values.astype(str) for ds in whole])).tolist()
    question = Question(decoder, wanted_labels(labels, known), session, Permutations(), str(Path.cwd()), confounds)
    prepared = [question.prepare(ds, ds.attrs[SUBJECT], None) for ds in whole]
    parts = [ds if own.mask is None else apply_mask(ds, own.mask) for ds, own in prepared]
    of_subjects = [question.fingerprint(stored[ds.attrs[SUBJECT]]) for ds in whole]
    if not pools:
        return *prepared[0], of_subjects
    return pool_subjects(parts), prepared[0][1].set_params(mask=None), of_subjects


def _planted_correlation(decoder: Decoder, truth: str) -> float:
    """Correlation over voxels of the pattern found and the difference that was planted between the two classes."""
    images: list[Any] = [nib.load(truth.format(condition=c)) for c in decoder.classes_]
    first, second = (image.get_fdata() for image in images)
    found = decoder.pattern_img_[str(decoder.classes_[1])].get_fdata()
    inside = found != 0
    return float(np.corrcoef(found[inside], (second - first)[inside])[0, 1])


def run_demo(output: Path, *, say: Callable[[str], None], progress: bool) -> dict[str, Any]:
    """Simulate a study with a known pattern, convert it, decode it and report; an earlier simulation in the folder is used again.

    Returns
    -------
    dict
        As :func:`run_decode`, with ``planted_correlation``.
    """
    bids, store = output / "simulated-study", output / "study.zarr"
    if output.exists() and any(output.iterdir()) and not bids.exists():
        raise DaskDecodeError(f"{output} is not empty and holds no earlier demo. Name a new folder with --output.")
    if not bids.exists():
        say(f"Simulating a subject who sees faces and cats ({bids}) ...")
        simulate_study(bids)
    truth = bids / "derivatives" / "daskdecode-simulation"
    anat, func = str(truth / "sub-{subject}" / "anat" / "sub-{subject}_"), str(truth / "sub-01" / "func" / "sub-01_task-objectviewing_")
    say(f"Converting to {store} ...")
    convert(bids, store, mask=f"{anat}desc-brain_mask.nii.gz", rois={"vt": f"{anat}label-vt_mask.nii.gz"}, progress=progress)
    say("Decoding, one run left out at a time ...")
    whole = open_subject(store)
    question = Question(Decoder(mask="vt"), ["face", "cat"], None, Permutations(), str(Path.cwd()))
    with progress_bar("Decoding", show=progress) as moved:
        decoder, _ = fit_subject(whole, whole.attrs[SUBJECT], question, progress=moved)
    r = _planted_correlation(decoder, func + "contrast-{condition}_stat-effect_statmap.nii.gz")
    known = (
        f"These data are simulated, so the truth is known: face and cat differ in the {decoder.n_elements_} voxels of the region vt, each "
        "voxel in its own way, and nowhere else. Over these voxels the pattern found below correlates with the planted one at "
        f"r = {r:.2f}."
    )
    results = output / "results"
    written = write_subject(decoder, whole, results, title="Demo: decoding face against cat", notes=[known])
    where = {"results": str(results), "report": str(results / written["report"])}
    return summarize(decoder) | where | {"planted_correlation": r}
