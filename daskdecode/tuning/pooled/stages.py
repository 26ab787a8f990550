"""What the models of a Hyperband search have learnt and scored so far, kept on disk."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from daskdecode.models.record import Record

_KIND = "model of a Hyperband search"


class Which(NamedTuple):
    """A model: its bracket, and its number there."""

    bracket: int
    number: int


class Stage(NamedTuple):
    """A model after so many calls of ``partial_fit``. With a seed, which blocks it has seen by then is settled."""

    model: Which
    calls: int


class Score(NamedTuple):
    """What a model scored on the validation samples at a stage, and the seconds of its last call and of scoring."""

    fit_time_s: float
    score: float
    score_time_s: float


class Stages:
    """States and scores of each model, a file a model: what is written anew as one learns is its own p weights.

    Parameters
    ----------
    folder : Path or None
        An existing one; None: nothing is kept.
    content : dict
        What the models depend on, JSON-able.

    Raises
    ------
    DecodingError
        A file there is damaged, or of another search.

    Notes
    -----
    A state is pickled, so a folder is for those who made it: unpickling runs what a file says.
    """

    def __init__(self, folder: Path | None, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content
        self._records: dict[Which, Record] = {}
        self._scores: dict[Which, dict[int, Score]] = defaultdict(dict)
        self._states: dict[Which, dict[int, bytes]] = defaultdict(dict)
        for path in () if folder is None else _files(folder):
            record = Record(_KIND, path, content)
            model = Which(*(int(n) for n in record.arrays["model"]))
            self._records[model] = record
            self._scores[model] = {int(calls): Score(*map(float, row)) for calls, *row in record.arrays["scores"]}
            ends = np.cumsum(record.arrays["sizes"])[:-1]
            parts = np.split(record.arrays["states"], ends)
            self._states[model] = {int(calls): part.tobytes() for calls, part in zip(record.arrays["calls"], parts, strict=True)}

    @staticmethod
    def check(folder: Path) -> None:
        """Say before any long work whether what is there can be read."""
        for path in _files(folder):
            Record.check(path, _KIND)

    @property
    def are_kept(self) -> bool:
        """Whether there is a place for them."""
        return self.folder is not None

    def newest(self, model: Which) -> int:
        """Calls after which the model's newest state was kept; 0 where none was."""
        return max(self._states[model], default=0)

    def score(self, stage: Stage) -> Score | None:
        """What a model scored at a stage."""
        return self._scores[stage.model].get(stage.calls)

    def state(self, stage: Stage) -> bytes | None:
        """Return the model at a stage, for :func:`restored`."""
        return self._states[stage.model].get(stage.calls)

    def keep(self, model: Which, states: Mapping[int, Any], scores: Mapping[int, Score], unscored: Iterable[int]) -> None:
        """Add states and scores of a model by calls.

        Of its states stay the newest, which more training starts from; the last that was scored, which may be what is chosen; and those at
        ``unscored`` calls.
        """
        assert self.folder is not None
        known = self._states[model] | {calls: cloudpickle.dumps(state) for calls, state in states.items()}
        self._scores[model] |= scores
        wanted = {max(known, default=0), max(self._scores[model], default=0), *unscored}
        self._states[model] = {calls: state for calls, state in known.items() if calls in wanted}
        if model not in self._records:
            self._records[model] = Record(_KIND, self.folder / f"model-{model.bracket}-{model.number}.npz", self.content)
        self._records[model].keep(**self._arrays(model))

    def _arrays(self, model: Which) -> dict[str, NDArray[Any]]:
        states, scores = self._states[model], self._scores[model]
        return {
            "model": np.array(model),
            "calls": np.array(list(states), dtype=np.int64),
            "sizes": np.array([len(state) for state in states.values()], dtype=np.int64),
            "states": np.frombuffer(b"".join(states.values()), dtype=np.uint8),
            "scores": np.array([(calls, *score) for calls, score in scores.items()], dtype=np.float64).reshape(-1, 4),
        }


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.npz"))


def restored(state: bytes) -> Any:
    """Return a model as it was kept."""
    return pickle.loads(state)  # the user's own file, bound to this search
