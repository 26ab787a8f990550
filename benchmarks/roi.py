"""A region of 500 voxels decoded out of a whole-brain store, beside nilearn's Decoder on the .nii.gz files with the region as its mask.

    python benchmarks/roi.py                     # 12 runs of 72 volumes of 64 x 64 x 36 voxels, 52,800 in the store; 2 of 8 conditions
    python benchmarks/roi.py --decode 8 --estimator ridge_classifier

Each in a process of its own: CPU and wall seconds, and peak memory above the imports. The conversion, made once, is shown apart. Both
are asked the same (scaling over all samples, C chosen on the held-out runs), so that scores are comparable.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from measure import cost, machine
from study import Study, block_labels, convert_study, write_study


def ours(store: str, estimator: str, labels: list[str]) -> dict[str, Any]:
    """Decode the region of a store; scores, and what was read."""
    from zarr.storage import LocalStore

    import daskdecode as dd
    from daskdecode.testing import CountingStore

    counting = CountingStore(LocalStore(store))
    ds = dd.select_labels(dd.open_subject(counting), labels)
    decoder = dd.Decoder(estimator, mask="region", tune="held_out", standardize="zscore_sample").fit(ds)
    read = sum((Path(store) / key).stat().st_size for key in counting.bold_reads.elements())
    return {"scores": decoder.cv_scores_, "read": read, "chunks": counting.bold_reads.total()}


def theirs(study: Study, estimator: str, labels: list[str]) -> dict[str, Any]:
    """Decode the region of the images with nilearn."""
    from nilearn.decoding import Decoder
    from nilearn.image import concat_imgs, index_img
    from sklearn.model_selection import LeaveOneGroupOut

    warnings.simplefilter("ignore")
    y, groups = np.array(study.y), np.array(study.groups)
    some = np.isin(y, labels)
    decoder = Decoder(estimator, mask=study.region, standardize="zscore_sample", cv=LeaveOneGroupOut())
    decoder.fit(index_img(concat_imgs(study.runs), some), y[some], groups=groups[some])
    return {"scores": decoder.cv_scores_, "read": sum(Path(run).stat().st_size for run in study.runs)}


def import_ours() -> None:
    """Import and compile."""
    import daskdecode as dd

    x = np.random.default_rng(0).standard_normal((24, 40))
    dd.Decoder("svc", tune="held_out").fit(x, ["a", "b"] * 12, np.repeat([0, 1, 2], 8))


def import_theirs() -> None:
    """Import."""
    import nilearn.decoding
    import nilearn.image  # noqa: F401


def main() -> None:
    """Simulate, convert, decode and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=8, help="conditions in the store")
    parser.add_argument("--decode", type=int, default=2, help="how many of them are told apart")
    parser.add_argument("--estimator", default="svc")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=9, help="volumes of a class in a run")
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 64, 36))
    parser.add_argument("--voxels", type=int, default=52_800, help="voxels of the brain")
    parser.add_argument("--region", type=int, default=500, help="voxels of the region")
    parser.add_argument("--signal", type=float, default=0.1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), Path(name) / "study.zarr"
        study = write_study(
            folder,
            block_labels(args.classes, args.repeats),
            args.runs,
            shape=tuple(args.shape),
            n_voxels=args.voxels,
            n_region=args.region,
            signal=args.signal,
        )
        print(machine("zarr"))
        print(f"{len(study.y)} int16 volumes of {args.shape}, {args.voxels} voxels in the store, {args.region} in the region, seed 0")
        print(f"{args.estimator}, {args.decode} of {args.classes} conditions, {args.runs} folds")
        print("convert    ", cost(convert_study, study, store, warm_up=import_ours))
        question = (args.estimator, [f"c{c}" for c in range(args.decode)])
        a = cost(ours, str(store), *question, warm_up=import_ours)
        print("daskdecode ", a, f"{a.value['read'] / 1e6:8.1f} MB read, {a.value['chunks']} chunks", flush=True)
        b = cost(theirs, study, *question, warm_up=import_theirs)
        print("nilearn    ", b, f"{b.value['read'] / 1e6:8.1f} MB read")
    scores = [(s, t) for c, theirs_ in b.value["scores"].items() for s, t in zip(a.value["scores"][c], theirs_, strict=True)]
    print(f"ratio      {b.cpu_s / a.cpu_s:9.1f}       {b.wall_s / a.wall_s:9.1f}   {b.peak_nbytes / a.peak_nbytes:8.1f}", end="")
    print(f"    {b.value['read'] / a.value['read']:8.1f}")
    print(
        f"mean score {sum(s for s, _ in scores) / len(scores):.4f}; largest difference of a score {max(abs(s - t) for s, t in scores):.2g}"
    )


if __name__ == "__main__":
    main()
