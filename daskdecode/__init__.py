"""daskdecode: distributed, out-of-core decoding of fMRI.

Convert NIfTI or BIDS once to a chunked Zarr store, select and mask lazily with xarray, and decode with scikit-learn's own
estimators on small Gram matrices: the data are read once, folds and hyperparameters are arithmetic.

Names are imported when first used, so that ``import daskdecode`` and ``daskdecode --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from daskdecode._version import __version__

_WHERE = {
    "Run": "daskdecode.sources.run",
    "find_runs": "daskdecode.sources.bids",
    "simulate_study": "daskdecode.sources.simulate",
    "fetch_haxby": "daskdecode.sources.haxby",
    "convert": "daskdecode.store.convert",
    "verify": "daskdecode.store.verify",
    "export": "daskdecode.store.export",
    "open_study": "daskdecode.store.open",
    "open_subject": "daskdecode.store.open",
    "add_mask": "daskdecode.store.masks",
    "select_labels": "daskdecode.data.select",
    "balance_labels": "daskdecode.data.select",
    "assign_confounds": "daskdecode.data.confounds",
    "apply_mask": "daskdecode.data.mask",
    "standardize": "daskdecode.data.preprocess",
    "detrend": "daskdecode.data.preprocess",
    "regress_out": "daskdecode.data.preprocess",
    "pool_subjects": "daskdecode.data.pool",
    "to_nifti": "daskdecode.data.mask",
    "mean_image": "daskdecode.data.mask",
    "Decoder": "daskdecode.models.decoder",
    "DecoderRegressor": "daskdecode.models.regressor",
    "permutation_test": "daskdecode.models.permutation",
    "PermutationTest": "daskdecode.models.null",
    "cross_decode": "daskdecode.models.transfer",
    "temporal_generalization": "daskdecode.models.transfer",
    "score_interval": "daskdecode.models.interval",
    "connect": "daskdecode.cluster.connect",
    "search": "daskdecode.tuning.search",
    "SearchResult": "daskdecode.tuning.result",
    "decode_study": "daskdecode.study.decode",
    "write_results": "daskdecode.results.result",
    "write_report": "daskdecode.results.report",
}

__all__ = [
    "Decoder",
    "DecoderRegressor",
    "PermutationTest",
    "Run",
    "SearchResult",
    "__version__",
    "add_mask",
    "apply_mask",
    "assign_confounds",
    "balance_labels",
    "connect",
    "convert",
    "cross_decode",
    "decode_study",
    "detrend",
    "export",
    "fetch_haxby",
    "find_runs",
    "mean_image",
    "open_study",
    "open_subject",
    "permutation_test",
    "pool_subjects",
    "regress_out",
    "score_interval",
    "search",
    "select_labels",
    "simulate_study",
    "standardize",
    "temporal_generalization",
    "to_nifti",
    "verify",
    "write_report",
    "write_results",
]

if TYPE_CHECKING:
    from daskdecode.cluster.connect import connect as connect
    from daskdecode.data.confounds import assign_confounds as assign_confounds
    from daskdecode.data.mask import apply_mask as apply_mask
    from daskdecode.data.mask import mean_image as mean_image
    from daskdecode.data.mask import to_nifti as to_nifti
    from daskdecode.data.pool import pool_subjects as pool_subjects
    from daskdecode.data.preprocess import detrend as detrend
    from daskdecode.data.preprocess import regress_out as regress_out
    from daskdecode.data.preprocess import standardize as standardize
    from daskdecode.data.select import balance_labels as balance_labels
    from daskdecode.data.select import select_labels as select_labels
    from daskdecode.models.decoder import Decoder as Decoder
    from daskdecode.models.interval import score_interval as score_interval
    from daskdecode.models.null import PermutationTest as PermutationTest
    from daskdecode.models.permutation import permutation_test as permutation_test
    from daskdecode.models.regressor import DecoderRegressor as DecoderRegressor
    from daskdecode.models.transfer import cross_decode as cross_decode
    from daskdecode.models.transfer import temporal_generalization as temporal_generalization
    from daskdecode.results.report import write_report as write_report
    from daskdecode.results.result import write_results as write_results
    from daskdecode.sources.bids import find_runs as find_runs
    from daskdecode.sources.haxby import fetch_haxby as fetch_haxby
    from daskdecode.sources.run import Run as Run
    from daskdecode.sources.simulate import simulate_study as simulate_study
    from daskdecode.store.convert import convert as convert
    from daskdecode.store.export import export as export
    from daskdecode.store.masks import add_mask as add_mask
    from daskdecode.store.open import open_study as open_study
    from daskdecode.store.open import open_subject as open_subject
    from daskdecode.store.verify import verify as verify
    from daskdecode.study.decode import decode_study as decode_study
    from daskdecode.tuning.result import SearchResult as SearchResult
    from daskdecode.tuning.search import search as search


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'daskdecode' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
