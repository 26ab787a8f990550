"""What a parameter is, in a form that another process finds again: for telling two settings apart, never for building one."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

NOT_CONTENT = {"mask", "memory_budget", "progress"}
"""Parameters of a decoder that do not change its results, or that are told by the data they select."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def shown(value: Any) -> str:
    """Write a parameter: plain values as they are, anything else as its name and a digest of all that it holds."""
    if _is_plain(value):
        return repr(value)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{name} #{hashlib.sha256(repr(_Taker()(value)).encode()).hexdigest()[:16]}"


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN or isinstance(value, np.generic)


class _Taker:
    """Take values apart into nested tuples of plain values.

    Estimators: class and parameters. Arrays: their bytes. Functions: code, defaults, closure, and what they use of their own module.
    Other objects: what pickle would keep. ``repr`` is not enough: scikit-learn's ends after 700 characters, numpy's after 1000 elements,
    and a function's tells no content.
    """

    def __init__(self) -> None:
        self.above: list[int] = []
        self.code: dict[Any, int] = {}
        self.fitted = False

    def __call__(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return type(value).__name__, repr(value)
        if id(value) in self.above:  # A cycle ends where it closes.
            return "above", len(self.above) - self.above.index(id(value))
        if isinstance(value, types.FunctionType | type):  # Code is told once, however many others call it.
            if value in self.code:
                return "told", self.code[value]
            self.code[value] = len(self.code)
        self.above.append(id(value))
        found = self._callable(value) or self._container(value) or self._object(value)
        self.above.pop()
        return type(value).__qualname__, found

    def _container(self, value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            held = self(array.tolist()) if array.dtype.hasobject else hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            return str(array.dtype), array.shape, held
        if type(value) is dict:
            return "dict", *((self(k), self(v)) for k, v in value.items())
        if type(value) in (list, tuple):
            return "list", *map(self, value)
        if type(value) in (set, frozenset):  # Their order differs from one process to another.
            return "set", *map(self, sorted(value, key=repr))
        return None

    def _callable(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, functools.partial):
            return self(value.func), self(value.args), self(value.keywords)
        if isinstance(value, types.MethodType):
            return self(value.__func__), self(value.__self__)
        if isinstance(value, types.CodeType):
            return value.co_code.hex(), value.co_names, value.co_varnames, value.co_freevars, self(value.co_consts)
        if isinstance(value, types.ModuleType | types.BuiltinFunctionType | np.ufunc | np.dtype):
            return str(getattr(value, "__module__", None)), str(getattr(value, "__qualname__", getattr(value, "__name__", value)))
        return None

    def _function(self, value: types.FunctionType) -> Any:
        used = []
        if not _installed(value.__module__):
            known = {name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__}
            used = [(name, self(v) if isinstance(v, _FOLLOWED) else type(v).__qualname__) for name, v in known.items()]
        held = [_held(cell) for cell in value.__closure__ or ()]
        parts = value.__code__, value.__defaults__, value.__kwdefaults__, held
        return value.__module__, value.__qualname__, *map(self, parts), *used

    def _class(self, value: type) -> Any:
        """Name of a class, and its methods where no installed version tells them."""
        if _installed(value.__module__):
            return value.__module__, value.__qualname__
        members = {k: getattr(v, "__func__", getattr(v, "fget", v)) for k, v in sorted(vars(value).items())}
        kept = [(k, self(v)) for k, v in members.items() if isinstance(v, (types.FunctionType, *_PLAIN)) and k != "__firstlineno__"]
        return value.__module__, value.__qualname__, *kept, *map(self, value.__bases__)

    def _object(self, value: Any) -> Any:
        if isinstance(value, BaseEstimator) and not self.fitted:
            if type(value).__sklearn_clone__ is BaseEstimator.__sklearn_clone__:
                return self(type(value)), self(value.get_params(deep=False))
            self.fitted = True  # A frozen estimator is not cloned: what it has learnt counts.
            found = self(type(value)), self(vars(value))
            self.fitted = False
            return found
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # Whatever an object's own pickling raises: its attributes are the next best.
            return self(type(value)), self(vars(value)) if hasattr(value, "__dict__") else repr(value)
        if isinstance(reduced, str):
            return self(type(value)), reduced
        return tuple(self(list(part) if place > 2 and part is not None else part) for place, part in enumerate(reduced[:5]))


_FOLLOWED = (*_PLAIN, list, tuple, dict, set, frozenset, np.ndarray, np.generic, types.FunctionType, type, functools.partial, BaseEstimator)
"""What a function may look up in its module and depend on; of anything else (a module, a logger) the type is enough."""


def _installed(module: str | None) -> bool:
    """Whether the code of a module is settled by what is installed, so that its name tells it."""
    top = str(module).split(".")[0]
    file = getattr(sys.modules.get(str(module)), "__file__", None) or ""
    return top == "daskdecode" or (top != "__main__" and top in sys.stdlib_module_names) or "site-packages" in file


def _names(code: types.CodeType) -> list[str]:
    """Names that a function, or one inside it, looks up in its module (and attributes, which do no harm)."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return sorted({*code.co_names, *inner})


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Not filled yet.
        return "empty"
