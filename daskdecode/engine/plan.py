"""What a decode will cost, before it runs: route, passes, memory, tasks; and a refusal, with the arithmetic, of what cannot fit."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from dask.system import CPU_COUNT
from dask.utils import format_bytes, parse_bytes

from daskdecode.engine.gram import n_pairs, table_nbytes
from daskdecode.engine.ranking import NBYTES, sums_are_less
from daskdecode.engine.sweep import table_limit
from daskdecode.engine.within_fold import VOXELS_AT_ONCE
from daskdecode.engine.workers import free_on_workers_nbytes, limit_nbytes
from daskdecode.errors import DecodingError, MemoryBudgetError

Route = Literal["gram", "columns", "direct"]
Engine = Literal["auto", "dual", "gram", "direct"]

_BLOCK_NBYTES = 128 * 2**20
"""Large enough for BLAS and few tasks, small enough to hold several."""

_BATCH_NBYTES = 2**29
"""Gram matrices worked on together where the data are in memory: more at a time would save no reading, only take memory."""

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.high", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container sees its own limit (version 2 of control groups, and 1); Dask knows them in distributed only."""

OWN_NBYTES = 8 * 2**20
"""What a decode of ten voxels takes beside its arrays (threads, codecs, graphs, tables): 7 MB, measured."""


@dataclass(frozen=True)
class Workload:
    """The size of a decode.

    Attributes
    ----------
    n_samples, n_voxels : int
    itemsize : int
        Bytes of a value of the data, in memory.
    n_kept : int
        Voxels that screening leaves to each problem (all, without screening).
    n_training_sets : int
        Distinct training sets, inner folds included.
    n_folds : int
        Outer folds.
    n_classes : int
        Binary problems: 1 for two classes, else one a class.
    n_candidates : int
        Hyperparameter settings.
    n_cells : int
        Cells of the screening sums; 0 without screening.
    n_blocks, block_voxels : int
        Blocks of voxels a sweep, and voxels in the largest.
    n_sums : int
        Sums a cell: 2 (of the data and of their squares), 3 in a regression (and of their products with the target).
    needs_voxels : bool
        Whether the estimator must see the voxels even where they outnumber the samples.
    fit_nbytes : int
        Bytes that the fits that run at one time take beside their training samples, where they see voxels.
    scaled : bool
        Whether every training set scales the voxels by itself.
    n_confounds : int
        Confounds that every training set regresses out.
    engine : {"auto", "dual", "gram", "direct"}
        ``"dual"`` (``"gram"``): the Gram matrix, also where there are no more voxels than samples; ``"direct"``: the voxels, also where
        the Gram matrix would do.
    n_threads : int
        Tasks that run at a time in one process.
    """

    n_samples: int
    n_voxels: int
    itemsize: int
    n_kept: int
    n_training_sets: int
    n_folds: int
    n_classes: int
    n_candidates: int
    n_cells: int
    n_blocks: int
    block_voxels: int
    n_sums: int = 2
    needs_voxels: bool = False
    fit_nbytes: int = 0
    scaled: bool = False
    n_confounds: int = 0
    engine: Engine = "auto"
    n_threads: int = CPU_COUNT

    @property
    def route(self) -> Route:
        """What solvers see: the Gram matrix, or the voxels because they are few (columns) or because they must (direct)."""
        few = self.n_kept <= self.n_samples
        if self.engine in ("dual", "gram") or (self.engine == "auto" and not few and not self.needs_voxels):
            return "gram"
        return "columns" if few else "direct"

    @property
    def screened(self) -> bool:
        """Whether each training set has voxels of its own."""
        return self.n_cells > 0

    @property
    def n_selections(self) -> int:
        """Distinct sets of voxels, or of their scales, each with its own Gram matrix (or columns)."""
        if self.screened:
            return self.n_training_sets * self.n_classes
        return self.n_training_sets if self.scaled and self.route == "gram" else 1

    @property
    def n_fits(self) -> int:
        """Calls of the solver."""
        return self.n_training_sets * self.n_classes * self.n_candidates


@dataclass(frozen=True)
class Plan:
    """How a decode will run. ``str(plan)`` says it in words.

    Attributes
    ----------
    route : {"gram", "columns", "direct"}
        ``"gram"``: solvers see the n x n Gram matrix or a factor of it; ``"columns"``: there are no more voxels than samples, so solvers
        see the voxels themselves; ``"direct"``: they see the voxels although there are more of them, because the estimator needs them.
    reason : str
    in_memory : bool
        Whether the selected data are kept in memory after the one pass that reads them.
    passes : int
        Times that the store is read.
    batch : int
        Sets of voxels whose Gram matrices (or columns) are in memory together.
    nbytes_read : int
        Upper bound of the decoded bytes read from the source, over all passes.
    peak_nbytes, memory_budget : int
        Predicted peak and what it must stay under, bytes.
    n_tasks : int
        Dask tasks of the engine, the reading of storage chunks not counted.
    gram_flops : float
        Floating-point operations of the Gram matrices, were none of their products shared: an upper bound.
    workload : Workload
    """

    route: Route
    reason: str
    in_memory: bool
    passes: int
    batch: int
    nbytes_read: int
    peak_nbytes: int
    memory_budget: int
    n_tasks: int
    gram_flops: float
    workload: Workload

    @property
    def selection_nbytes(self) -> int:
        """Bytes of one set of voxels: the triangle of its Gram matrix, or its columns."""
        return _one_selection(self.workload, self.route)

    def room_nbytes(self, most: int) -> int:
        """Bytes of the budget that are left for sets of voxels; no more than ``most`` where a sweep over them reads nothing."""
        room = self.memory_budget - (self.peak_nbytes - self.batch * self.selection_nbytes)
        return min(room, most) if self.in_memory else room

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain, JSON-able values."""
        return asdict(self)

    def __str__(self) -> str:
        w = self.workload
        where = "kept in memory after one pass" if self.in_memory else f"streamed in {_passes(self)}"
        return "\n".join(
            [
                f"route     {self.route}: {self.reason}",
                f"data      {w.n_samples} samples x {w.n_voxels} voxels, {where} ({format_bytes(self.nbytes_read)} read)",
                f"problems  {w.n_training_sets} training sets x {w.n_classes} problems x {w.n_candidates} candidates = {w.n_fits} fits",
                f"voxels    {w.n_kept} a problem" + (" after screening" if w.screened else ""),
                *_within_fold(w),
                f"memory    {format_bytes(self.peak_nbytes)} predicted, {format_bytes(self.memory_budget)} allowed",
                f"work      about {self.n_tasks} tasks, at most {self.gram_flops:.3g} floating-point operations for the Gram matrices",
            ]
        )


def _passes(plan: Plan) -> str:
    """Say how often the store is read and, where that is more than three times, why."""
    w, n_batches = plan.workload, -(-plan.workload.n_selections // plan.batch)
    said = f"{plan.passes} passes"
    if n_batches == 1:
        return said
    sets = "Gram matrices" if plan.route == "gram" else "sets of columns"
    all_at_once = plan.peak_nbytes + (w.n_selections - plan.batch) * plan.selection_nbytes
    return (
        f"{said} ({int(w.screened)} to screen, {n_batches} for {w.n_selections} {sets} of {format_bytes(plan.selection_nbytes)}, of which "
        f"the budget holds {plan.batch} at a time, 1 for coefficients; with {format_bytes(all_at_once)} it would be "
        f"{plan.passes - n_batches + 1} passes)"
    )


def _within_fold(w: Workload) -> list[str]:
    """Say what every training set learns before its models."""
    steps = [f"regression on {w.n_confounds} confounds"] * (w.n_confounds > 0) + ["mean and standard deviation of each voxel"] * w.scaled
    return [f"learnt    in each fold, on its training samples: {', then '.join(steps)}"] if steps else []


def memory_budget(budget: str | int | None) -> int:
    """Bytes a decode may take: ``"4GB"``, a number, or half of what this process may still take (:func:`free_nbytes`).

    On a cluster never more than what its workers have left beside Python and some air: one that is nearly full pauses, and where nothing
    can be freed, the work waits for ever.
    """
    if budget is not None:
        try:
            asked = int(parse_bytes(budget) if isinstance(budget, str) else budget)
        except (TypeError, ValueError) as error:
            raise DecodingError(f"memory_budget={budget!r} is not a size: give bytes, or text such as '4GB'.") from error
        return int(min(asked, limit_nbytes()))
    return int(min(free_nbytes() // 2, free_on_workers_nbytes()))


def free_nbytes() -> int:
    """Bytes that this process may still take: what the machine has free, or a lower limit of a container or of ``ulimit``.

    Limits are of the whole process, so what it holds already is taken off.
    """
    process = psutil.Process()
    limits = [psutil.virtual_memory().available, _cgroup_limit() - process.memory_info().rss]
    if hasattr(process, "rlimit"):  # on Linux
        held = process.memory_info()
        kinds = ((psutil.RLIMIT_AS, held.vms), (psutil.RLIMIT_DATA, held.data))
        limits += [soft - taken for soft, taken in ((process.rlimit(kind)[0], taken) for kind, taken in kinds) if soft >= 0]
    return int(max(0, min(limits)))


def _cgroup_limit() -> float:
    """Bytes that the control group of this process may take; infinite where there is none."""
    found = [float("inf")]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max", or no such file
            found.append(int(Path(path).read_text()))
    return min(found)


def block_nbytes(budget: str | int | None = None) -> int:
    """Size of a block of voxels in float64, bytes: a sixteenth of what arrays may take, and no more than makes tasks large enough."""
    return min(_BLOCK_NBYTES, max(0, memory_budget(budget) - OWN_NBYTES) // 16)


def make_plan(w: Workload, budget: str | int | None = None) -> Plan:
    """Choose route and batches for a workload.

    Raises
    ------
    DecodingError
        If ``engine="dual"`` is asked of an estimator that needs voxels.
    MemoryBudgetError
        If even one set of voxels at a time, streamed, exceeds the budget; the message shows the sum.
    """
    allowed = memory_budget(budget)
    route = w.route
    if route == "gram" and w.needs_voxels:
        raise DecodingError(
            "engine='dual' works on inner products of samples, but this estimator depends on the voxels one by one: leave engine='auto', "
            "or take an estimator with an L2 penalty (svc, logistic, ridge)."
        )
    data = w.n_samples * w.n_voxels * w.itemsize
    stages, one = _stages(w, route), _one_selection(w, route)
    streamed = _peak(stages, one)
    if streamed > allowed:
        raise MemoryBudgetError(_refusal(w, stages, one, allowed))
    # Kept as read and as scaled: the scaling of a voxel needs all its samples first.
    in_memory = streamed + 2 * data <= allowed
    kept = 2 * data if in_memory else 0
    room = allowed - kept - sum(stages[_SELECTIONS].values())
    batch = int(min(w.n_selections, max(1, (min(room, _BATCH_NBYTES) if in_memory else room) // one)))
    if in_memory and batch > w.n_training_sets:
        # Whole problems, since the training sets of a problem share products; and one for each core, since more take only memory.
        batch = min(batch // w.n_training_sets, w.n_threads) * w.n_training_sets
    n_batches = -(-w.n_selections // batch)
    passes = 1 if in_memory else int(w.screened) + n_batches + 1
    return Plan(
        route=route,
        reason=_reason(w, route),
        in_memory=in_memory,
        passes=passes,
        batch=batch,
        nbytes_read=data * passes,
        peak_nbytes=kept + _peak(stages, batch * one),
        memory_budget=allowed,
        n_tasks=(2 + n_batches) * 2 * w.n_blocks + w.n_training_sets * (w.n_classes if w.screened else 1),
        gram_flops=float(w.n_selections) * w.n_samples * (w.n_samples + 1) * w.n_kept if route == "gram" else 0.0,
        workload=w,
    )


_SELECTIONS = "models"
"""The stage in which sets of voxels are in memory beside its other parts."""


def _peak(stages: dict[str, dict[str, int]], selections: int) -> int:
    """Bytes of the stage that takes most."""
    return max(sum(parts.values()) + (selections if name == _SELECTIONS else 0) for name, parts in stages.items())


def _stages(w: Workload, route: Route) -> dict[str, dict[str, int]]:
    """Bytes that each stage takes beside the sets of voxels worked on together; stages follow one another."""
    wide = 8 * w.n_samples * w.block_voxels
    blocks = {"Python's own": OWN_NBYTES, f"blocks of voxels ({w.n_threads} at a time)": 3 * wide * min(w.n_threads, w.n_blocks)}
    # Shifted, squared, transposed and scaled copies of some voxels, and numbers of each for all training sets.
    few = min(w.n_voxels, VOXELS_AT_ONCE)
    prepared = 8 * few * (4 * w.n_samples + 4 * w.n_training_sets * (1 + w.n_classes)) if w.scaled or w.n_confounds else 0
    blocks |= {f"voxels prepared by training sets ({w.n_threads} at a time)": prepared * w.n_threads}
    kept = {
        "selected voxels": w.n_selections * w.n_voxels if w.screened else 0,
        "weights of models on samples": 8 * w.n_folds * w.n_classes * w.n_candidates * 3 * w.n_samples,
    }
    coefficients = 8 * w.n_classes * (w.n_folds * w.block_voxels * w.n_threads + 4 * w.n_voxels)
    stages = {_SELECTIONS: kept | _models(w, route, blocks), "coefficients": kept | blocks | {"coefficients": coefficients}}
    return ({"screening": blocks | {"screening": _screening(w)}} | stages) if w.screened else stages


def _models(w: Workload, route: Route, blocks: dict[str, int]) -> dict[str, int]:
    """Bytes of the tasks that run together while sets of voxels are filled, and models fitted on them: a task is one or the other."""
    if route == "direct":
        # The columns of all stay while they are fitted.
        return blocks | {
            f"training samples of fits ({w.n_threads} at a time)": 2 * 8 * w.n_samples * w.n_kept * w.n_threads,
            "inside the solver": w.fit_nbytes,
        }
    if route == "columns":
        return blocks | {f"fits ({w.n_threads} at a time)": 4 * 8 * w.n_samples * w.n_kept * w.n_threads}
    # A square matrix, also as a training set prepares it; the training samples' own, what is left of it at each pivot, the factor.
    squares = 1 + 3 * (w.scaled or w.n_confounds > 0) + 4
    fits = {
        "Python's own": OWN_NBYTES,
        f"Gram matrices and factors of fits ({w.n_threads} at a time)": squares * 8 * w.n_samples**2 * w.n_threads,
    }
    if w.screened:
        shared = table_nbytes(w.n_samples, table_limit(8 * w.n_samples * w.block_voxels))
        blocks = blocks | {f"products shared between training sets ({w.n_threads} at a time)": shared * w.n_threads}
    elif w.scaled:
        blocks = blocks | {f"products ({w.n_threads} at a time)": 8 * w.n_samples**2 * w.n_threads}
    return max(blocks, fits, key=lambda parts: sum(parts.values()))


def _screening(w: Workload) -> int:
    """Bytes of candidates before and after a block is added to them (or of sums), of blocks being scored, and of a selection being made."""
    n_kept, n_sums = min(w.n_kept + 2, w.n_voxels), w.n_sums * w.n_cells
    n_blocks = min(w.n_threads + 1, w.n_blocks)
    making = 8 * (6 + 2 * w.n_classes) * w.n_voxels
    if not w.scaled and not w.n_confounds and sums_are_less(w.n_selections, n_kept, n_sums, w.n_voxels):
        return 8 * n_sums * (w.n_voxels + n_blocks * w.block_voxels) + making
    scored = NBYTES * w.n_selections + 8 * (2 * n_sums + w.n_classes)
    return NBYTES * w.n_selections * 2 * n_kept + scored * w.block_voxels * n_blocks + making


def _one_selection(w: Workload, route: Route) -> int:
    """Bytes of one set of voxels: the triangle of its Gram matrix, or its columns."""
    if route != "gram":
        return 8 * 3 * w.n_samples * w.n_kept
    if w.screened or w.scaled:
        return 8 * n_pairs(w.n_samples) + 2 * w.n_voxels * w.screened  # added up in place; with copies of its selection of voxels
    return 8 * w.n_samples**2 * (1 + min(w.n_blocks, w.n_threads + 1))  # one, and those of blocks that are being added up


def _reason(w: Workload, route: Route) -> str:
    if route == "direct" and not w.needs_voxels:
        return f"engine='direct', so the solver sees the {w.n_kept} voxels of a problem although their Gram matrix would do"
    if route == "gram" and w.n_kept <= w.n_samples:
        return f"engine='dual', so the solver works on the Gram matrix although {w.n_kept} voxels are no more than {w.n_samples} samples"
    if route == "columns":
        return f"{w.n_kept} voxels a problem, no more than the {w.n_samples} samples, so the solver sees the voxels themselves"
    if route == "direct":
        columns, fits = 8 * w.n_samples * w.n_kept, 2 * 8 * w.n_samples * w.n_kept * w.n_threads + w.fit_nbytes
        return (
            f"this estimator depends on the voxels one by one, so it sees all {w.n_kept} of a problem although there are only "
            f"{w.n_samples} samples: {format_bytes(columns)} for the columns in double precision, {format_bytes(fits)} for the fits that "
            f"run together, and each of {w.n_fits} fits at its price on voxels. An L2 penalty (svc, logistic, ridge) needs only their "
            "Gram matrix"
        )
    return f"{w.n_kept} voxels a problem, more than the {w.n_samples} samples, so the solver works on their Gram matrix"


def _refusal(w: Workload, stages: dict[str, dict[str, int]], one: int, allowed: int) -> str:
    need = _peak(stages, one)
    stages = {name: ({"one Gram matrix or set of columns": one} if name == _SELECTIONS else {}) | parts for name, parts in stages.items()}
    largest = max(stages.values(), key=lambda parts: sum(parts.values()))
    terms = " + ".join(f"{format_bytes(v)} {k}" for k, v in largest.items() if v)
    return (
        f"Decoding {w.n_samples} samples x {w.n_voxels} voxels needs at least {format_bytes(need)} of memory but memory_budget is "
        f"{format_bytes(allowed)}: {terms}. Raise memory_budget, select fewer samples, or apply a mask."
    )
