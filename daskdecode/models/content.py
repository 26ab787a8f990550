"""What a parameter is, in a form that another process finds again: for telling two settings apart, never for building one."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

NOT_CONTENT = {"mask", "memory_budget", "progress"}
"""Parameters of a decoder that do not change its results, or that are told by the data they select."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def shown(value: Any) -> str:
    """Write a parameter: plain values as they are, anything else as its name and a digest of all that it holds.

    A dict of settings is the same in any order of its names, as it is to scikit-learn.
    """
    if type(value) is dict and all(type(name) is str for name in value):
        value = dict(sorted(value.items()))
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

    Estimators: class and parameters. Arrays: their bytes. Functions: code, defaults, closure, and what they use of their own module and,
    by its name, of others that are no installed packages (not what they import when they are called). Classes: methods and attributes. Of
    what is installed, the name and the version. Other objects: what pickle would keep. ``repr`` is not enough: scikit-learn's ends after
    700 characters, numpy's after 1000 elements, and a function's tells no content.
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
        if isinstance(value, np.generic) or type(value) in (np.ndarray, np.memmap):  # others, as masked arrays, hold more than an array
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
        if isinstance(value, functools.partial | functools.partialmethod):
            return self(value.func), self(value.args), self(value.keywords)
        if isinstance(value, types.MethodType):
            return self(value.__func__), self(value.__self__)
        if _wraps(value):  # cached or compiled: what is in the cache, or has been compiled yet, is no matter
            return "wraps", self(value.__wrapped__)
        if isinstance(value, types.CodeType):
            arguments = value.co_flags, value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount
            return value.co_code.hex(), value.co_names, value.co_varnames, value.co_freevars, arguments, self(value.co_consts)
        if isinstance(value, types.ModuleType | types.BuiltinFunctionType | np.ufunc | np.dtype):
            bound = getattr(value, "__self__", None)
            name = str(getattr(value, "__module__", None)), str(getattr(value, "__qualname__", getattr(value, "__name__", value)))
            return name if bound is None or isinstance(bound, types.ModuleType) else (*name, self(bound))
        return None

    def _function(self, value: types.FunctionType) -> Any:
        used: list[Any] = []
        if not _installed(value.__module__):
            names = _names(value.__code__)
            used = [self({k: v for k, v in vars(value).items() if k != "__wrapped__"})]
            used += [(name, self._used(value.__globals__[name], names)) for name in names if name in value.__globals__]
        held = [_held(cell) for cell in value.__closure__ or ()]
        parts = value.__code__, value.__defaults__, value.__kwdefaults__, held
        return *_named(value), *map(self, parts), *used

    def _used(self, value: Any, names: Sequence[str]) -> Any:
        """What a function that looks up these names may depend on."""
        if not isinstance(value, types.ModuleType):
            return self(value) if _is_followed(value) else type(value).__qualname__
        if _installed(value.__name__) or id(value) in self.above:
            return value.__name__, _version(value.__name__)
        self.above.append(id(value))
        found = [(name, self._used(vars(value)[name], names)) for name in names if name in vars(value)]
        self.above.pop()
        return value.__name__, found

    def _class(self, value: type) -> Any:
        """Name of a class, and its methods and attributes where no installed version tells them."""
        if _installed(value.__module__):
            return _named(value)
        # Of what has two underscores only methods: the rest is Python's own (names, documentation, annotations).
        members = {k: _inner(v) for k, v in sorted(vars(value).items())}
        own = {k: v for k, v in members.items() if isinstance(v, types.FunctionType) or not (k.startswith("__") and k.endswith("__"))}
        kept = [(k, self(v)) for k, v in own.items() if _is_followed(v)]
        return *_named(value), *kept, *map(self, value.__bases__)

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
            return self(type(value)), self(vars(value)) if hasattr(value, "__dict__") else re.sub(r" at 0x\w+", "", repr(value))
        if isinstance(reduced, str):
            return self(type(value)), reduced
        return tuple(self(list(part) if place > 2 and part is not None else part) for place, part in enumerate(reduced[:5]))


_CODE = (types.FunctionType, type, functools.partial, functools.partialmethod, BaseEstimator)
_DATA = (list, tuple, dict, set, frozenset, range, slice, np.ndarray, np.generic, pd.DataFrame, pd.Series, pd.Index, PurePath)


def _is_followed(value: Any) -> bool:
    """Whether what a function looks up, or a class has, is told by content; of anything else (a logger, a lock) the type is enough."""
    return isinstance(value, (*_PLAIN, *_DATA, *_CODE)) or _wraps(value) or not _installed(type(value).__module__)


def _wraps(value: Any) -> bool:
    """Whether this is an installed package's wrapper of a function, such as functools' caches and numba's compiled functions."""
    if isinstance(value, types.FunctionType | type) or not _installed(type(value).__module__):
        return False
    return isinstance(getattr(value, "__wrapped__", None), types.FunctionType)


def _inner(member: Any) -> Any:
    """The function of a class's member that has one."""
    for kind, name in ((staticmethod, "__func__"), (classmethod, "__func__"), (property, "fget"), (functools.cached_property, "func")):
        if isinstance(member, kind):
            return getattr(member, name)
    return member


def _named(value: Any) -> tuple[str, str, str]:
    return str(value.__module__), value.__qualname__, _version(value.__module__)


def _version(module: str | None) -> str:
    """Version of the package that a module is of, as far as the package says it."""
    return str(getattr(sys.modules.get(str(module).split(".")[0]), "__version__", ""))


def _installed(module: str | None) -> bool:
    """Whether the code of a module is settled by what is installed, so that its name and version tell it."""
    top, file = str(module).split(".")[0], getattr(sys.modules.get(str(module)), "__file__", None)
    if top == "daskdecode":
        return True
    if file is None:  # of Python itself, or typed in
        return top != "__main__" and top in sys.stdlib_module_names
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts) or file.startswith(_OF_PYTHON)


_OF_PYTHON = f"{Path(os.__file__).parent}{os.sep}"


def _names(code: types.CodeType) -> list[str]:
    """Names that a function, or one inside it, looks up in its module (and attributes, which do no harm)."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return sorted({*code.co_names, *inner})


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Not filled yet.
        return "empty"
