from __future__ import annotations

import pickle
import threading

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


def test_a_part_whose_task_is_run_again_is_not_counted_twice_and_one_too_early_is_refused():
    total = RunningSum((3,)).add(0, add, 1).add(1, add, 2)
    for number in (0, 1):
        np.testing.assert_array_equal(total.add(number, add, number + 1).values, 1 + 2)
    with pytest.raises(RuntimeError, match="awaits part 2"):
        total.add(3, add, 4)
    np.testing.assert_array_equal(total.add(2, add, 3).values, 1 + 2 + 3)


def test_a_sum_that_failed_half_way_fails_again_with_the_same_error():
    def half(values):
        values[0] += 1
        raise MemoryError("no room")

    total = RunningSum((3,)).add(0, add, 1)
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            total.add(1, half)
    with pytest.raises(MemoryError, match="no room"):
        pickle.loads(pickle.dumps(total)).add(1, add, 1)


def test_a_sum_from_another_worker_may_be_read_only():
    total = RunningSum((3,)).add(0, add, 1)
    buffers = []
    data = pickle.dumps(total, protocol=5, buffer_callback=buffers.append)
    moved = pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])
    assert not moved.values.flags.writeable
    np.testing.assert_array_equal(moved.add(1, add, 2).values, 3)
    np.testing.assert_array_equal(total.values, 1)


def test_a_copy_taken_while_a_part_is_added_holds_whole_parts_and_goes_on_right():
    """What a worker about to leave does: its results are copied to another one while its last task runs, which then runs again there."""
    total, halfway, go_on = RunningSum((4,)).add(0, add, 1), threading.Event(), threading.Event()

    def slowly(values):
        values[:2] += 10
        halfway.set()
        assert go_on.wait(10)
        values[2:] += 10

    buffers, found = [], []
    adding = threading.Thread(target=total.add, args=(1, slowly))
    copying = threading.Thread(target=lambda: found.append(pickle.dumps(total, protocol=5, buffer_callback=buffers.append)))
    adding.start()
    assert halfway.wait(10)
    copying.start()
    copying.join(0.2)
    go_on.set()
    for thread in (adding, copying):
        thread.join(10)
    total.add(2, add, 100)  # what is still to be sent must not change any more
    copy = pickle.loads(found[0], buffers=[bytearray(buffer) for buffer in buffers])
    for number, part in ((1, 10), (2, 100)):
        copy.add(number, add, part)
    np.testing.assert_array_equal(copy.values, 1 + 10 + 100)
    np.testing.assert_array_equal(total.values, 1 + 10 + 100)
