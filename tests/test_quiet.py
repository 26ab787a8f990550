"""Warnings that tasks leave out, where tasks run side by side."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning

from daskdecode.quiet import quiet
from daskdecode.tuning.pooled.blocks import BlockScorer


def overlapping(first, second):
    """Run two functions in threads: the second begins while the first is at work, and ends after it. Each is given what to do at work."""
    second_in, first_out = threading.Event(), threading.Event()
    threads = [
        threading.Thread(target=lambda: (first(lambda: second.start() or second_in.wait(10)), first_out.set())),
        threading.Thread(target=lambda: second_function(lambda: second_in.set() or first_out.wait(10))),
    ]
    second_function, second = second, threads[1]
    threads[0].start()
    for thread in threads:
        thread.join(20)
    assert first_out.is_set()


def test_filters_are_put_back_when_the_last_one_is_out():
    before, inside = list(warnings.filters), []

    def first(at_work):
        with quiet(UserWarning):
            at_work()

    def second(at_work):
        with quiet("of a kind"):
            at_work()  # the first one has gone
            warnings.warn("of a kind", stacklevel=1)
            warnings.warn("another", stacklevel=1)
            inside.append(list(warnings.filters))

    overlapping(first, second)
    assert len(inside) == 1
    assert inside[0] != before
    assert list(warnings.filters) == before


def test_what_is_not_named_is_told():
    with quiet(UndefinedMetricWarning, "of a kind"), pytest.raises(UserWarning, match="another"):
        warnings.warn("another", stacklevel=1)
    with quiet("of a kind"), quiet(UserWarning):
        warnings.warn("another", stacklevel=1)
    with pytest.raises(ZeroDivisionError), quiet(Warning):
        raise ZeroDivisionError
    with pytest.raises(UserWarning, match="of a kind"):
        warnings.warn("of a kind", stacklevel=1)


def test_scores_of_blocks_in_threads_leave_the_filters_of_the_caller():
    before, decision, y = list(warnings.filters), np.arange(4.0)[:, None], np.array([0, 1, 0, 1])

    def score(at_work):
        def scorer(*_):
            at_work()
            return 0.5

        BlockScorer(scorer, 2).of(decision, y)

    overlapping(score, score)
    assert list(warnings.filters) == before
