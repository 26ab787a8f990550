from __future__ import annotations

from dataclasses import replace

import pytest

from daskdecode.engine.plan import Workload, make_plan
from daskdecode.errors import MemoryBudgetError

WHOLE_BRAIN = Workload(
    n_samples=216,
    n_voxels=40_000,
    itemsize=4,
    n_kept=8_000,
    n_training_sets=12,
    n_folds=12,
    n_classes=1,
    n_candidates=3,
    n_cells=24,
    n_blocks=5,
    block_voxels=8_192,
)


def test_data_that_fit_are_read_once():
    plan = make_plan(WHOLE_BRAIN, "8GB")
    assert (plan.route, plan.in_memory, plan.passes) == ("gram", True, 1)
    assert plan.batch == plan.workload.n_selections == 12
    assert plan.peak_nbytes <= plan.memory_budget


def test_data_that_do_not_fit_are_streamed():
    larger = replace(WHOLE_BRAIN, n_voxels=4_000_000, n_kept=800_000, n_blocks=489)
    assert make_plan(larger, "12GB").in_memory
    plan = make_plan(larger, 4 * 10**9)
    assert not plan.in_memory
    assert plan.passes == 3
    assert plan.peak_nbytes <= plan.memory_budget


def test_few_voxels_are_given_to_the_solver_themselves():
    plan = make_plan(replace(WHOLE_BRAIN, n_voxels=150, n_kept=150, n_cells=0, block_voxels=150, n_blocks=1), "1GB")
    assert plan.route == "columns"
    assert "no more than the 216 samples" in plan.reason


def test_a_budget_that_is_too_small_is_refused_with_the_sum():
    with pytest.raises(MemoryBudgetError, match=r"needs at least .* but memory_budget is 0.95 MiB: .* \+ ") as caught:
        make_plan(WHOLE_BRAIN, "1MB")
    assert isinstance(caught.value, MemoryError)


def test_a_plan_says_everything_in_words_and_in_json():
    import json

    plan = make_plan(WHOLE_BRAIN, "8GB")
    for word in ("gram", "216 samples x 40000 voxels", "one pass", "8000 a problem after screening", "predicted", "tasks"):
        assert word in str(plan)
    assert json.loads(json.dumps(plan.to_dict()))["passes"] == 1


def test_an_estimator_that_needs_voxels_says_what_that_costs():
    gram = make_plan(WHOLE_BRAIN, "8GB")
    direct = make_plan(replace(WHOLE_BRAIN, needs_voxels=True, fit_nbytes=10**9), "8GB")
    assert (gram.route, direct.route) == ("gram", "direct")
    assert direct.peak_nbytes > gram.peak_nbytes + 10**9
    assert "8000 of a problem although there are only 216 samples" in direct.reason
    small = replace(WHOLE_BRAIN, n_voxels=150, n_kept=150, n_cells=0, needs_voxels=True)
    assert make_plan(small, "8GB").route == "columns"
    with pytest.raises(MemoryBudgetError, match="inside the solver"):
        make_plan(replace(WHOLE_BRAIN, needs_voxels=True, fit_nbytes=10**10), "8GB")
