from __future__ import annotations

import pickle

import numpy as np
import pytest

from daskdecode.engine.running import RunningSum


def add(values, part):
    values += part


def test_parts_are_added_in_place_and_in_order():
    total = RunningSum((3,))
    values = total.values
    for number in range(4):
        assert total.add(number, add, number) is total
    assert total.values is values
    np.testing.assert_array_equal(values, 0 + 1 + 2 + 3)
    assert total.__sizeof__() >= values.nbytes


def test_a_task_that_is_run_again_is_refused_instead_of_counted_twice():
    total = RunningSum((3,)).add(0, add, 1)
    with pytest.raises(RuntimeError, match="awaits part 1"):
        total.add(0, add, 1)
    with pytest.raises(ValueError, match="broadcast"):
        total.add(1, add, np.zeros(5))
    with pytest.raises(RuntimeError, match="awaits part None"):
        total.add(1, add, 1)


def test_a_sum_from_another_worker_may_be_read_only():
    total = RunningSum((3,)).add(0, add, 1)
    buffers = []
    data = pickle.dumps(total, protocol=5, buffer_callback=buffers.append)
    moved = pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])
    assert not moved.values.flags.writeable
    np.testing.assert_array_equal(moved.add(1, add, 2).values, 3)
    np.testing.assert_array_equal(total.values, 1)
