"""Which labels may change places under the null hypothesis, and how one permutation is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from daskdecode import schema
from daskdecode.errors import DecodingError

Ints = NDArray[np.intp]
Exchange = Literal["within_run", "blocks"]
Step = float | NDArray[np.float64] | None
"""Seconds from one volume to the next: one number, that of each sample's run (n_samples,), or not known."""

_GAP = 1.5
"""Volumes further apart than this many repetition times have something between them that was not selected."""


@dataclass(frozen=True)
class Exchangeable:
    """Units of samples, and the sets within which units change places.

    Attributes
    ----------
    units : ndarray of int, shape (n_units, length) for each set
        Sample indices; a row keeps its order wherever it goes. One array a set.
    """

    units: tuple[Ints, ...]
    n_samples: int

    def draw(self, seed: int, number: int) -> Ints:
        """Permutation ``number`` of a seed, shape (n_samples,): sample i gets the label of sample ``draw(...)[i]``.

        Each has a generator of its own, so that it depends on nothing else: not on workers, order, or how many there are.
        """
        rng = np.random.default_rng([seed, number])
        order = np.arange(self.n_samples)
        for units in self.units:
            order[units.ravel()] = units[rng.permutation(len(units))].ravel()
        return order

    def n_arrangements(self, y: NDArray[Any]) -> int:
        """Count the different labellings that can be drawn: the smallest attainable p value is about one over it."""
        total = 1
        for units in self.units:
            _, counts = np.unique(y[units[:, 0]], return_counts=True)
            total *= math.factorial(len(units)) // math.prod(math.factorial(int(c)) for c in counts)
        return total


def exchangeable(
    exchange: Exchange,
    y: NDArray[Any],
    groups: NDArray[Any] | None,
    times: NDArray[np.float64] | None = None,
    blocks: NDArray[Any] | None = None,
    step_s: Step = None,
) -> Exchangeable:
    """Lay out what may be exchanged.

    ``"within_run"``: single samples of a run. ``"blocks"``: the stimulation blocks of a run that have the same number of samples. Blocks
    of different lengths never change places: neither labels that would leave the block's boundaries, nor a class that would gain samples,
    are arrangements that the experiment could have had (Winkler et al. 2015).

    Parameters
    ----------
    exchange : {"within_run", "blocks"}
    y, groups, times, step_s : as for :func:`stretches`
        ``groups`` None: one run.
    blocks : ndarray, shape (n_samples,), optional
        Block of each sample, where it is known. Default: the stretches.

    Raises
    ------
    DecodingError
        No two units with different labels can change places.
    """
    runs = np.zeros(y.size, dtype=np.intp) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    if exchange == "within_run":
        units = [np.flatnonzero(runs == run)[:, None] for run in range(runs.max() + 1)]
    else:
        found_blocks = stretches(y, runs, times, step_s) if blocks is None else _given_blocks(blocks, y, runs)
        units = []
        for run in range(runs.max() + 1):
            inside = [block for block in found_blocks if runs[block[0]] == run]
            units += [np.stack([b for b in inside if b.size == size]) for size in sorted({b.size for b in inside})]
    found = Exchangeable(tuple(units), y.size)
    if found.n_arrangements(y) < 2:
        raise DecodingError(_nothing_to_exchange(exchange, y, runs, times, step_s))
    return found


def _given_blocks(blocks: NDArray[Any], y: NDArray[Any], runs: Ints) -> list[Ints]:
    """Samples of each block, after checking that a block has one label and one run."""
    _, first, codes = np.unique(blocks, return_index=True, return_inverse=True)
    codes = codes.ravel()
    for what, values in (("labels", y), ("runs", runs)):
        wrong = np.flatnonzero(values != values[first][codes])
        if wrong.size:
            raise DecodingError(f"Block {blocks[wrong[0]]!s} has samples of several {what}: a block is exchanged as a whole.")
    return [np.flatnonzero(codes == block) for block in range(first.size)]


def _nothing_to_exchange(exchange: Exchange, y: NDArray[Any], runs: Ints, times: NDArray[np.float64] | None, step_s: Step) -> str:
    if exchange == "within_run":
        return (
            "A permutation test exchanges labels within runs, but every run has a single label: no exchange would change anything. "
            "Check groups=, which names the run of each sample."
        )
    shown = ", ".join(f"{y[b[0]]!s} x {b.size}" for b in stretches(y, runs, times, step_s) if runs[b[0]] == 0)
    return (
        "exchange='blocks' exchanges blocks of equal length within runs, but no run has two blocks of the same length with different "
        f"labels (the first run: {shown}). Cut blocks to a common length, or use exchange='within_run' where samples are independent."
    )


def stretches(y: NDArray[Any], runs: NDArray[Any], times: NDArray[np.float64] | None = None, step_s: Step = None) -> list[Ints]:
    """Blocks: maximal stretches of neighbouring samples with one label within a run.

    Neighbours are samples that follow each other among those of their run: the rows of runs may be mixed.

    Parameters
    ----------
    y : ndarray, shape (n_samples,)
    runs : ndarray, shape (n_samples,)
    times : ndarray of float64, shape (n_samples,), optional
        Seconds from the start of the run. Where samples between two of the same label were not selected (rest), the step in time is
        larger, and a new block begins.
    step_s : float or ndarray of float64, shape (n_samples,), optional
        Seconds from one volume to the next in each sample's run, which is what a step is measured by. Default: the smallest step in time
        of the run, which is larger where no two neighbouring volumes were selected.

    Returns
    -------
    list of int arrays
        Sample indices, in order within each and by the first of each.
    """
    by_run = [np.flatnonzero(runs == run) for run in np.unique(runs)]
    found: list[Ints] = []
    for rows in by_run:
        change = y[rows][1:] != y[rows][:-1]
        if times is not None:
            steps = np.diff(times[rows])
            usual = np.min(steps, where=steps > 0, initial=np.inf) if step_s is None else np.broadcast_to(step_s, y.shape)[rows[1:]]
            change = change | (steps > _GAP * usual)
        found += np.split(rows, np.flatnonzero(change) + 1)
    return sorted(found, key=lambda block: int(block[0]))


def times_of(X: Any) -> NDArray[np.float64] | None:
    """Seconds of each sample from the start of its run, where X is a Dataset or DataArray that says so."""
    if not isinstance(X, xr.Dataset | xr.DataArray) or schema.TIME not in X.coords or X[schema.TIME].dtype.kind not in "fiu":
        return None
    return np.asarray(X[schema.TIME].values, dtype=np.float64)


def step_of(X: Any) -> Step:
    """Seconds from one volume to the next in each sample's run, (n_samples,), or one number for all, as far as X says it.

    A Dataset says ``repetition_time``, and ``repetition_times`` (by :func:`daskdecode.schema.run_ids`) where its runs differ.
    """
    attrs = getattr(X, "attrs", {})
    each = attrs.get("repetition_times")
    if each is None:
        said = attrs.get("repetition_time")
        return None if said is None else float(said)
    names = schema.run_ids(X).tolist() if schema.RUN in X.coords else []
    # Runs that were named anew are not known by their old names: their own times tell.
    return np.array([float(each[name]) for name in names]) if names and set(names) <= set(each) else None
