"""Events in seconds become one label a volume."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from daskdecode.errors import SourceError
from daskdecode.schema import REST
from daskdecode.sources.arguments import as_count, as_seconds
from daskdecode.sources.labels import as_texts, column_of, is_missing, is_not_applicable
from daskdecode.sources.tables import read_table

GAP_S: Final = 4.0
"""Events of one condition this close are one block: the response, some 5 s wide, does not fall back between them."""

HRF_DELAY_S: Final = 4.0
"""Shift between events and the volumes that show them; see the notes of :func:`events_to_labels` for where it comes from."""

_TIME_DECIMALS: Final = 6  # microseconds: onsets are decimal numbers, and half a volume should be half a volume


class _Block(NamedTuple):
    onset: float
    end: float
    condition: str


def events_to_labels(
    events: str | os.PathLike[str] | pd.DataFrame,
    n_volumes: int,
    repetition_time: float,
    *,
    gap_s: float = GAP_S,
    hrf_delay_s: float = HRF_DELAY_S,
    rest: str = REST,
) -> np.ndarray:
    """Label every volume of a run with the condition that covers most of it.

    1. Events of one condition whose gap (end to next onset) is at most `gap_s`, with nothing of another condition in it, are one block.
    2. Blocks are shifted by `hrf_delay_s`.
    3. Volume v was acquired from ``v * repetition_time`` to ``(v + 1) * repetition_time``. Where conditions cover less than half of it,
       time that they share counting once, it is `rest`; otherwise it belongs to the condition that covers most of it, and of two that
       cover it equally, to the one that began later (its response is rising while the other's falls), or comes first by name.
    4. A block too short to win any volume (a single brief event) gets the one in which its middle falls, where that is still rest.

    Parameters
    ----------
    events : path-like or DataFrame
        BIDS events: columns ``onset`` and ``duration`` (seconds from the start of the first volume acquired; a duration of ``n/a`` is 0)
        and ``trial_type``. Rows without a trial type are passed over.
    n_volumes : int
        Volumes acquired.
    repetition_time : float
        Seconds from one volume to the next.
    gap_s : float
        Longest gap within a block, seconds.
    hrf_delay_s : float
        Haemodynamic shift, seconds; 0 where the events have been shifted already.
    rest : str
        Label of volumes without a condition.

    Returns
    -------
    ndarray of str, shape (n_volumes,)
        Eager.

    Raises
    ------
    SourceError
        The table is missing or lacks a column, an onset or duration is no number, or no event falls within the run (onsets in
        milliseconds, for example); or an argument is no such number.

    Notes
    -----
    A shift turns a block of stimuli into a block of volumes. The best one is where the response to a block passes half its height, not
    where that to a single stimulus peaks (5 to 6 s): about 4.5 s for blocks of 10 to 30 s with Glover's response function, and on
    subject 1 of Haxby et al. (2001), whose stimuli last 0.5 s every 2 s, 3.75 s for the first block of a run.

    Agreement with the labels that have come with that data set since PyMVPA, over 12 runs of 121 volumes (TR 2.5 s): 1356 of 1452
    (93.4 %) with the default 4 s; at most 1404 (96.7 %), for 2 to 2.5 s. Its published events repeat every 36 s but its labels every
    35.7 s, and so do the images: the shift that fits best falls from 3.75 s in the first block to 1.75 s in the last, which is a
    matter of those onsets and not of blood flow. ``tests/sources/test_sources_events.py`` measures all of this.
    """
    where = _where(events)
    n_volumes = as_count(n_volumes, "n_volumes", where)
    repetition_time = as_seconds(repetition_time, "repetition_time", where, above=0)
    hrf_delay_s = as_seconds(hrf_delay_s, "hrf_delay_s", where)
    gap_s = as_seconds(gap_s, "gap_s", where, least=0, finite=False)
    blocks = list(_blocks(_event_table(events), gap_s))
    shifted = [_Block(b.onset + hrf_delay_s, b.end + hrf_delay_s, b.condition) for b in blocks]
    starts = np.arange(n_volumes) * repetition_time
    labels = _by_coverage(shifted, starts, repetition_time, rest)
    for onset, end, condition in shifted:
        first, middle = _volume_at(onset, repetition_time), _volume_at((onset + end) / 2, repetition_time)
        last = max(first, math.ceil(_in_volumes(end, repetition_time)) - 1)  # a block that ends where a volume begins is not in it
        if 0 <= middle < n_volumes and labels[middle] == rest and condition not in labels[max(first, 0) : last + 1]:
            labels[middle] = condition
    if blocks and all(_volume_at(onset, repetition_time) >= n_volumes or end < 0 for onset, end, _ in blocks):
        raise SourceError(
            f"No event of {where} falls within its run: onsets go from {blocks[0].onset:g} to {blocks[-1].onset:g}, but the run "
            f"lasts {n_volumes * repetition_time:g} s ({n_volumes} volumes every {repetition_time:g} s). Onsets are seconds from its start."
        )
    return labels.astype(np.str_)


def _in_volumes(time_s: float, repetition_time: float) -> float:
    """Time in repetition times, rounded because a quotient of decimal numbers falls beside whole ones: 2.4 // 0.8 is 2."""
    return round(time_s / repetition_time, _TIME_DECIMALS)


def _volume_at(time_s: float, repetition_time: float) -> int:
    """The volume that was being acquired."""
    return math.floor(_in_volumes(time_s, repetition_time))


def _where(events: str | os.PathLike[str] | pd.DataFrame) -> str:
    return "The events table" if isinstance(events, pd.DataFrame) else str(events)


def _event_table(events: str | os.PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    """Onset, end (seconds) and condition of every event that has one, by onset."""
    where = _where(events)
    if not isinstance(events, str | os.PathLike | pd.DataFrame):
        raise SourceError(f"events= is a {type(events).__name__}: expected the path of an events.tsv or a DataFrame.")
    table = events if isinstance(events, pd.DataFrame) else read_table(events, "events")
    table = table.rename(columns={column_of(table, [name], where, required=True): name for name in ("onset", "duration", "trial_type")})
    conditions = table["trial_type"]
    onsets = _numbers(table["onset"])
    without_duration = is_missing(table["duration"]) | is_not_applicable(table["duration"])
    durations = np.where(without_duration, 0.0, _numbers(table["duration"]))
    named = ~(is_missing(conditions) | is_not_applicable(conditions))
    for name, values, wrong in (
        ("onset", onsets, ~np.isfinite(onsets)),
        ("duration", durations, ~(np.isfinite(durations) & (durations >= 0))),
    ):
        if (wrong & named).any():
            row = int((wrong & named).argmax())
            raise SourceError(
                f"{where} has {name} {str(table[name].iloc[row])!r} in row {row} (counted from 0): expected seconds"
                f"{' >= 0' if np.isfinite(values[row]) else ''}."
            )
    # Rounded, because a sum of decimal numbers falls beside another of the same value: 1.4 + 4.4 is more than 2.8 + 3.
    times = {"onset": onsets[named].round(_TIME_DECIMALS), "end": (onsets + durations)[named].round(_TIME_DECIMALS)}
    columns = times | {"condition": as_texts(conditions)[named]}
    return pd.DataFrame(columns).sort_values("onset", kind="stable", ignore_index=True)


def _numbers(column: pd.Series) -> np.ndarray:
    """Numbers of a column of any dtype, NaN where there is none."""
    return pd.to_numeric(pd.Series(as_texts(column), dtype=object), errors="coerce").to_numpy(dtype=np.float64)


def _blocks(events: pd.DataFrame, gap_s: float) -> Iterator[_Block]:
    """Join events of one condition over gaps of at most `gap_s` into which no other condition reaches; by onset."""
    onsets, ends = events["onset"].to_numpy(), events["end"].to_numpy()
    blocks = []
    for condition, own in events.groupby("condition", sort=False):
        other = (events["condition"] != condition).to_numpy()
        open_block: _Block | None = None
        for onset, end in zip(own["onset"], own["end"], strict=True):
            if open_block is not None:
                between = other & (onsets < onset) & (np.maximum(ends, onsets + 1e-9) > open_block.end)
                if round(onset - open_block.end, _TIME_DECIMALS) <= gap_s and not (onset > open_block.end and between.any()):
                    open_block = open_block._replace(end=max(open_block.end, end))
                    continue
                blocks.append(open_block)
            open_block = _Block(onset, end, str(condition))
        if open_block is not None:
            blocks.append(open_block)
    return iter(sorted(blocks))


def _by_coverage(blocks: list[_Block], starts: np.ndarray, repetition_time: float, rest: str) -> np.ndarray:
    """Label of every volume by the condition that covers most of it, `rest` where they all cover less than half."""
    covered: dict[str, np.ndarray] = {}
    began: dict[str, np.ndarray] = {}
    for onset, end, condition in blocks:
        within = np.minimum(end, starts + repetition_time) - np.maximum(onset, starts)
        covered[condition] = covered.get(condition, 0.0) + np.maximum(within, 0.0)
        began[condition] = np.where(within > 0, onset, began.get(condition, -np.inf))
    labels = np.full(len(starts), rest, dtype=object)
    most, latest = np.zeros(len(starts)), np.full(len(starts), -np.inf)
    for condition, seconds in sorted(covered.items()):  # by name, which decides where all else is equal
        seconds = seconds.round(_TIME_DECIMALS)
        wins = (seconds > most) | ((seconds == most) & (seconds > 0) & (began[condition] > latest))
        labels[wins], most[wins], latest[wins] = condition, seconds[wins], began[condition][wins]
    labels[_covered_by_any(blocks, starts, repetition_time).round(_TIME_DECIMALS) < round(repetition_time / 2, _TIME_DECIMALS)] = rest
    return labels


def _covered_by_any(blocks: list[_Block], starts: np.ndarray, repetition_time: float) -> np.ndarray:
    """Seconds of every volume in which there was any condition; time that conditions share counts once."""
    covered = np.zeros(len(starts))
    reached = -np.inf
    for onset, end, _ in sorted(blocks):
        within = np.minimum(end, starts + repetition_time) - np.maximum(max(onset, reached), starts)
        covered += np.maximum(within, 0.0)
        reached = max(reached, end)
    return covered
