"""The library called in order, as the commands need it; nothing is worked out here that the library does not offer to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr

from daskdecode.cli.command import progress_bar
from daskdecode.data.mask import mean_image
from daskdecode.data.select import select_labels
from daskdecode.errors import DaskDecodeError, SelectionError
from daskdecode.models.decoder import Decoder
from daskdecode.results.report import write_report
from daskdecode.results.result import check_results_folder, file_stem, write_results
from daskdecode.results.scores import summarize
from daskdecode.schema import LABEL, REST, TIME, run_ids
from daskdecode.sources.simulate import simulate_study
from daskdecode.store.convert import convert
from daskdecode.store.open import open_subject


def _background(ds: xr.Dataset) -> nib.Nifti1Image:
    """Mean image of the first run: by eye the same as that of all runs, without reading all of them again."""
    runs = run_ids(ds)
    return mean_image(ds.isel({TIME: np.flatnonzero(runs == runs[0])}))


def _fit(ds: xr.Dataset, *, progress: bool, **options: Any) -> Decoder:
    with progress_bar("Decoding", show=progress) as callback:
        return Decoder(progress=callback, **options).fit(ds)


def _write(decoder: Decoder, ds: xr.Dataset, output: Path, *, title: str | None = None, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Write results and report; return the summary with where they are."""
    write_results(decoder, output)
    name = "_".join(part for part in (file_stem(decoder), "desc-decoding_report.html") if part)
    report = write_report(decoder, output / name, background=_background(ds), title=title, notes=notes)
    return summarize(decoder) | {"results": str(output), "report": str(report)}


def _wanted(labels: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The labels to tell apart: all but rest, or those named, singly or separated by commas (a label may have a comma itself)."""
    if labels is None:
        found = [name for name in known if name != REST]
        if not found:
            raise SelectionError(
                f"Only {REST!r} is in the store: were events or labels missing at the conversion? Convert again with them."
            )
        return found
    split = [[label] if label in known else [name.strip() for name in label.split(",") if name.strip()] for label in labels]
    return [name for names in split for name in names]


def run_decode(
    store: str,
    output: Path,
    *,
    labels: Sequence[str] | None,
    subject: str | None,
    session: str | None,
    mask: str | None,
    standardize: str,
    progress: bool,
    **options: Any,
) -> dict[str, Any]:
    """Decode one subject of a store and write everything to a folder.

    Returns
    -------
    dict
        :func:`daskdecode.results.scores.summarize`, and the paths ``results`` and ``report``.
    """
    check_results_folder(output)
    whole = open_subject(store, subject, session)
    ds = select_labels(whole, _wanted(labels, np.unique(whole[LABEL].values.astype(str)).tolist()))
    how: Any = None if standardize == "none" else standardize
    decoder = _fit(ds, progress=progress, mask=mask, standardize=how, **options)
    return _write(decoder, whole, output)


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
    decoder = _fit(select_labels(whole, ["face", "cat"]), progress=progress, mask="vt")
    r = _planted_correlation(decoder, func + "contrast-{condition}_stat-effect_statmap.nii.gz")
    n_voxels = decoder.n_elements_
    known = (
        f"These data are simulated, so the truth is known: face and cat differ in the {n_voxels} voxels of the region vt, each voxel in "
        f"its own way, and nowhere else. Over these voxels the pattern found below correlates with the planted one at r = {r:.2f}."
    )
    return _write(decoder, whole, output / "results", title="Demo: decoding face against cat", notes=[known]) | {"planted_correlation": r}
