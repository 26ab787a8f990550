"""Write a fitted decoder as BIDS derivatives: maps, scores, predictions and what was run on what."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd

from daskdecode._version import __version__
from daskdecode.errors import DaskDecodeError
from daskdecode.models.outcome import plain
from daskdecode.results.maps import STATISTICS, class_maps
from daskdecode.results.scores import SCORE_COLUMNS, check_fitted, is_regressor, score_table

BIDS_VERSION: Final = "1.10.0"
DATASET_NAME: Final = "daskdecode: decoding"
Writer = Callable[[Path], object]
"""Writes a file at the path that it is given."""


def entity_value(label: object, fallback: str = "unnamed") -> str:
    """Turn any label into a BIDS entity value, which holds letters and digits only: ``"scrambled pix!"`` becomes ``"scrambledPix"``."""
    ascii_label = unicodedata.normalize("NFKD", str(label)).encode("ascii", "ignore").decode()
    words: list[str] = re.findall(r"[A-Za-z0-9]+", ascii_label) or [fallback]
    return words[0] + "".join(word[:1].upper() + word[1:] for word in words[1:])


def entity_values(labels: Iterable[object]) -> dict[str, str]:
    """Give every label an entity value of its own, numbered where two labels would share one (also where only case tells them apart)."""
    values: dict[str, str] = {}
    taken: set[str] = set()
    for label in map(str, labels):
        value = base = entity_value(label)
        number = 2
        while value.lower() in taken:  # file systems of macOS and Windows do not tell case apart
            value, number = f"{base}{number}", number + 1
        taken.add(value.lower())
        values[label] = value
    return values


def _entities(decoder: Any) -> dict[str, str]:
    """Entities of the data that the analysis ran on, in BIDS order; empty for bare arrays."""
    found = {}
    for key, long in (("sub", "subject"), ("ses", "session"), ("task", "task")):
        value = decoder.provenance_.get(long)
        if isinstance(value, str) and value:
            found[key] = entity_value(value.removeprefix(f"{key}-"))
    return found


def file_stem(decoder: Any) -> str:
    """Begin file names with ``sub-01_ses-a_task-faces``, as far as the analysis has them; empty for bare arrays."""
    return "_".join(f"{key}-{value}" for key, value in _entities(decoder).items())


def join_entities(*parts: str) -> str:
    """Join the parts of a file name that are not empty."""
    return "_".join(part for part in parts if part)


def jsonable(value: Any) -> Any:
    """Reduce a value to what JSON holds: as :func:`daskdecode.models.outcome.plain`, with null for numbers that are not finite."""
    return _finite(plain(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_writer(content: Mapping[str, Any]) -> Writer:
    """Write JSON, the same for the same content."""
    text = json.dumps(jsonable(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return partial(Path.write_text, data=text, encoding="utf-8")


def _table_writer(table: pd.DataFrame) -> Writer:
    return partial(table.to_csv, sep="\t", index=False, na_rep="n/a", lineterminator="\n", encoding="utf-8")


def with_sidecar(name: str, table: pd.DataFrame, description: str, columns: Mapping[str, str]) -> dict[str, Writer]:
    """Pair a table with the side-car that says what its columns are; a column that nobody described is left out of the side-car."""
    described = {str(c): {"Description": columns[str(c)]} for c in table.columns if str(c) in columns}
    return {f"{name}.tsv": _table_writer(table), f"{name}.json": json_writer({"Description": description} | described)}


def _scores(decoder: Any, stem: str) -> dict[str, Writer]:
    table = score_table(decoder)
    hyperparameters = {c: f"Value of {c} chosen for this fold and class." for c in table.columns if c not in SCORE_COLUMNS}
    optimistic = " It was also used to choose the hyperparameters, so it is optimistic." if decoder.optimistic_ else ""
    columns = {
        "fold": "Number of the fold, from 0.",
        "test_runs": "Runs that were left out.",
        "class": "Class, told from the rest (for two classes: from the other; both have the same values).",
        "score": f"{decoder.scoring_} on the runs left out.{optimistic}",
        "chance": "What an answer that never looks at the data can reach (n/a where there is no such level).",
        "n_train": "Samples trained on.",
        "n_test": "Samples left out.",
    }
    return with_sidecar(join_entities(stem, "desc-decoding_scores"), table, "Scores of each fold and class.", columns | hyperparameters)


def _folds(decoder: Any, stem: str) -> dict[str, Writer]:
    table = decoder.cv_metrics_.reset_index(names="fold")
    columns = {
        "fold": "Number of the fold, from 0.",
        "test_runs": "Runs that were left out.",
        "n_train": "Samples trained on.",
        "n_test": "Samples left out.",
        "accuracy": "Share of the left-out samples for which the right one of all classes was named.",
        "balanced_accuracy": "Mean over classes of the share of each class that was named rightly.",
        "chance": "Accuracy of always naming the most frequent class of the training samples.",
    }
    if not is_regressor(decoder):
        return with_sidecar(join_entities(stem, "desc-decoding_folds"), table, "Multiclass scores of each fold.", columns)
    columns |= {
        "r2": "Share of the variance of the left-out values that is predicted; below 0 where their mean would have been nearer.",
        "mean_absolute_error": "Mean distance of the predictions from the left-out values, in their units.",
        "correlation": "Pearson's correlation of predictions and left-out values.",
        "chance": "r2 of always predicting the mean of the training samples.",
    }
    return with_sidecar(join_entities(stem, "desc-decoding_folds"), table, "Scores of each fold.", columns)


def _confusion(decoder: Any, stem: str) -> dict[str, Writer]:
    if is_regressor(decoder):
        return {}
    table = decoder.confusion_.rename_axis(index="true", columns=None).reset_index()
    columns = {str(c): f"Number of left-out samples that were predicted to be {c}." for c in decoder.confusion_.columns}
    columns["true"] = "Class that the samples of this row have."
    description = "Counts over all folds; a row is the true class, a column the predicted one."
    return with_sidecar(join_entities(stem, "desc-decoding_confusion"), table, description, columns)


def _predictions(decoder: Any, stem: str) -> dict[str, Writer]:
    columns = {
        "sample": "Position of the sample in the data that were decoded, from 0.",
        "fold": "Fold in which the sample was left out.",
        "run": "Run of the sample.",
        "label": "True class.",
        "predicted": "Class predicted by a decoder that had not seen the sample's fold.",
    }
    if is_regressor(decoder):
        columns |= {"target": "True value.", "predicted": "Value predicted by a decoder that had not seen the sample's fold."}
    else:
        columns |= {f"decision_{c}": f"Decision value for {c}; larger speaks for it." for c in decoder.classes_}
    return with_sidecar(
        join_entities(stem, "desc-decoding_predictions"), decoder.cv_predictions_, "Out-of-fold prediction of every sample.", columns
    )


def _maps(decoder: Any, stem: str) -> dict[str, Writer]:
    """Maps of every class and statistic, each with its side-car; a table of coefficients where the data have no voxel grid."""
    values = entity_values(decoder.cv_scores_)
    of = {"Predicted": "values"} if is_regressor(decoder) else {"Classes": list(decoder.classes_)}
    files: dict[str, Writer] = {}
    for name, statistic, image in class_maps(decoder):
        base = join_entities(stem, f"desc-{values[name]}", f"stat-{statistic}", "statmap")
        files[f"{base}.nii.gz"] = image.to_filename  # nibabel writes gzip without time or name: same map, same bytes
        files[f"{base}.json"] = json_writer({"Class": name, **of, "Description": STATISTICS[statistic].meaning})
    if files or not hasattr(decoder, "coef_"):
        return files
    problems = [str(c) for c in decoder.cv_scores_][-len(decoder.coef_) :]  # two classes are one problem: the second one's
    table = pd.DataFrame({f"{kind}_{c}": getattr(decoder, f"{kind}_")[n] for kind in ("coef", "pattern") for n, c in enumerate(problems)})
    columns = {c: STATISTICS[c.split("_")[0]].meaning for c in table.columns} | {"feature": "Column of the data, from 0."}
    description = "Linear weights and patterns; the name after the underscore is the class that positive values speak for."
    return with_sidecar(join_entities(stem, "desc-decoding_weights"), table.rename_axis("feature").reset_index(), description, columns)


def dataset_description() -> dict[str, Writer]:
    """The file that makes a folder a BIDS derivative data set, and ours."""
    content = {
        "Name": DATASET_NAME,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "daskdecode", "Version": __version__}],
    }
    return {"dataset_description.json": json_writer(content)}


def check_results_folder(folder: str | os.PathLike[str]) -> Path:
    """Say before any long work whether results may be written to a folder.

    Parameters
    ----------
    folder : path
        New, empty, or an earlier folder of results.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DaskDecodeError
        The path is a file or below one, the folder cannot be written to, is a study store, or a BIDS data set but not one of results.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise DaskDecodeError(f"Results need a folder, but {there} is a file. Name another place.")
    if not os.access(there, os.W_OK):
        raise DaskDecodeError(f"Results would go to {folder}, but {there} cannot be written to. Name another place.")
    if (folder / "zarr.json").exists():
        raise DaskDecodeError(f"{folder} is a store of data. Name another folder for the results.")
    path = folder / "dataset_description.json"
    if not path.exists():
        return folder
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["Name"]
    except (ValueError, KeyError, TypeError):
        name = None
    if name != DATASET_NAME:
        raise DaskDecodeError(
            f"{folder} is a BIDS data set of its own ({path.name} calls it {name!r}, not {DATASET_NAME!r}). "
            f"Name a new folder for the results, such as {folder / 'derivatives' / 'daskdecode'}."
        )
    return folder


def _earlier_files(provenance: Path) -> set[str]:
    """Names of the files that an earlier analysis under the same name left, so that none of them outlives it."""
    try:
        return {Path(name).name for name in json.loads(provenance.read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _commit(staged: Path, target: Path, names: list[str], provenance: str) -> None:
    """Move finished files into place; the provenance goes first and comes last, so its presence says that all is of one analysis."""
    target.mkdir(parents=True, exist_ok=True)
    stale = _earlier_files(target / provenance) - set(names)
    (target / provenance).unlink(missing_ok=True)
    for name in stale:
        (target / name).unlink(missing_ok=True)
    for name in sorted(set(names) - {provenance}):
        (staged / name).replace(target / name)
    (staged / provenance).replace(target / provenance)


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A place in a folder for files that are not finished; a full disk, which names no file by itself, is told with the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".daskdecode-", dir=folder))
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


def write_files(folder: Path, files: Mapping[str, Writer]) -> None:
    """Write files, by name, to a folder: each appears as a whole or not at all, and only once all of them could be written."""
    with _staged(folder) as staged:
        for name, write in files.items():
            write(staged / name)
        for name in files:
            (staged / name).replace(folder / name)


def results_folder(decoder: Any, folder: Path) -> Path:
    """Where :func:`write_results` puts the files of this analysis."""
    entities = _entities(decoder)
    parents = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
    return folder.joinpath(*parents, "func") if parents else folder


def write_results(decoder: Any, folder: str | os.PathLike[str]) -> Path:
    """Write a fitted decoder's maps, scores, predictions and provenance as a BIDS derivative data set.

    Parameters
    ----------
    decoder : Decoder or DecoderRegressor
        Fitted. One without weights (``gnb``, trees, pipelines) has no maps; a regression has no confusion matrix.
    folder : path
        Root of the derivative data set; made where it does not exist. Several subjects may share it.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    DecodingError
        The decoder is not fitted.
    DaskDecodeError
        The folder is a file, or somebody else's BIDS data set.

    Notes
    -----
    Files lie in ``sub-<subject>[/ses-<session>]/func`` (in the root for bare arrays), named
    ``sub-<subject>[_ses-..][_task-..]_desc-<class>_stat-<coef|stdcoef|pattern>_statmap.nii.gz`` and ``.._desc-decoding_<scores|folds|
    confusion|predictions>.tsv``, each with a side-car, and ``.._desc-decoding_provenance.json``. All are first written under a temporary
    name in the same folder and then renamed; an earlier analysis of the same subject is replaced as a whole. The same decoder gives
    the same bytes. Eager; memory is that of the maps.
    """
    check_fitted(decoder)
    folder = check_results_folder(folder)
    stem, target = file_stem(decoder), results_folder(decoder, folder)

    files = {k: v for part in (_maps, _scores, _folds, _confusion, _predictions) for k, v in part(decoder, stem).items()}
    provenance = join_entities(stem, "desc-decoding_provenance.json")
    files[provenance] = json_writer(dict(decoder.provenance_) | {"optimistic": bool(decoder.optimistic_), "files": sorted(files)})

    with _staged(folder) as staged:
        for name, write in files.items():
            write(staged / name)
        write_files(folder, dataset_description())
        _commit(staged, target, list(files), provenance)
    return folder
