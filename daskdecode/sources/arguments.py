"""Numbers given as arguments, checked before they are used."""

from __future__ import annotations

import math
import numbers
from typing import Any

from daskdecode.errors import SourceError


def as_seconds(value: Any, name: str, where: object, *, above: float = -math.inf, least: float = -math.inf, finite: bool = True) -> float:
    """A time in seconds within its bounds, as a float.

    Raises
    ------
    SourceError
        It is not a number (text is none either), NaN, infinite where it must be finite, or out of bounds.
    """
    bounds = (f" > {above:g}" if above > -math.inf else "") + (f" >= {least:g}" if least > -math.inf else "")
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        seconds = float(value)
        if (math.isfinite(seconds) or not (finite or math.isnan(seconds))) and seconds >= least and (seconds > above or above == -math.inf):
            return seconds
    raise SourceError(f"{name}={value!r} of {where} is not a usable time: expected seconds{bounds}, as a number.")


def as_count(value: Any, name: str, where: object, *, least: int | None = 0) -> int:
    """A number of volumes, as an int.

    Raises
    ------
    SourceError
        It is not a whole number, or below `least`.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        number = float(value)
        if number.is_integer() and (least is None or number >= least):
            return int(number)
    bounds = "" if least is None else f" >= {least}"
    raise SourceError(f"{name}={value!r} of {where} is not a number of volumes: expected a whole number{bounds}.")
