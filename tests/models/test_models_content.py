from __future__ import annotations

import functools
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score, fbeta_score, make_scorer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

from daskdecode import Decoder, permutation_test
from daskdecode.errors import DecodingError
from daskdecode.models.content import shown


def pipeline(k):
    """Its repr tells k after more than 700 characters, where scikit-learn's ends."""
    steps = [FunctionTransformer(validate=True, check_inverse=False, accept_sparse=True) for _ in range(12)]
    return make_pipeline(*steps[:6], SelectKBest(k=k), *steps[6:], LinearSVC(random_state=0))


def scorer(sign):
    def score(estimator, x, y):
        return sign * float((estimator.predict(x) == y).mean())

    return score


def defaults(sign):
    return lambda estimator, x, y, *, weight=sign: weight


def frozen(slope):
    return FrozenEstimator(make_pipeline(Ridge()).fit(np.arange(4.0)[:, None], slope * np.arange(4.0)))


def array(last):
    return np.append(np.zeros(5000), last)


def local_class(sign):
    class Score:
        def __call__(self, estimator, x, y):
            return sign

    return Score()


def nested(sign):
    return {"scores": [functools.partial(scorer(sign), y=1)]}


def fitted(sign):
    return make_scorer(fbeta_score, beta=sign)


RULES = [pipeline, scorer, defaults, frozen, array, local_class, nested, fitted]


@pytest.mark.parametrize("rule", RULES)
def test_the_same_twice_and_another_apart(rule):
    assert shown(rule(1)) == shown(rule(1)) != shown(rule(2))


def test_lambdas_methods_and_generators_are_told_apart():
    first, second = (lambda e, x, y: e.predict(x).mean()), (lambda e, x, y: e.predict(x).sum())
    assert first.__qualname__ == second.__qualname__
    assert len({shown(f) for f in (first, second, f1_score, np.mean, np.add, LinearSVC, Ridge)}) == 7
    assert shown(Ridge(random_state=np.random.RandomState(1))) != shown(Ridge(random_state=np.random.RandomState(2)))
    assert shown(clone(pipeline(3))) == shown(pipeline(3))
    assert shown({"C": [1.0, None, "a"]}) == "{'C': [1.0, None, 'a']}"


CLASS = "class Score:\n    {}\n    def __call__(self, estimator, x, y): return self.a\nscore = Score()"
FUNCTION = "{}\ndef score(estimator, x, y): return a"
HIDDEN = {
    "a class's list": CLASS.format("a = [1, {}]"),
    "a class's array": "import numpy as np\n" + CLASS.format("a = np.append(np.zeros(5000), {})"),
    "a class's class": CLASS.format("class a: k = {}"),
    "a property": CLASS.format("a = property(lambda self: {})"),
    "a cached property": "import functools\n" + CLASS.format("a = functools.cached_property(lambda self: {})"),
    "a cached method": "import functools\n" + CLASS.format("a = functools.lru_cache(lambda self: {})"),
    "a method that is partly filled in": "import functools\n" + CLASS.format("a = functools.partialmethod(print, {})"),
    "a cached function": "import functools\n" + FUNCTION.format("a = functools.cache(lambda: {})"),
    "a compiled function": "import numba\n" + FUNCTION.format("a = numba.njit(lambda: {})"),
    "a global table": "import pandas as pd\n" + FUNCTION.format("a = pd.DataFrame({{'a': [0] * 3000 + [{}]}})"),
    "a global range": FUNCTION.format("a = range({})"),
    "a global object": FUNCTION.format("class A:\n    def __init__(self, k): self.k = k\na = A({})"),
    "a function's attribute": "def score(estimator, x, y): return score.a\nscore.a = {}",
    "arguments": "def score(a, b={}, *c): return c",
    "a method of an object": "score = dict(a={}).get",
    "a masked array": "import numpy as np\nscore = np.ma.array(np.zeros(3000), mask=[0] * 2999 + [{} - 1])",
}


def loaded(name, source, monkeypatch):
    module = types.ModuleType(name)
    module.__file__ = f"/home/me/{name}.py"
    monkeypatch.setitem(sys.modules, name, module)
    exec(source, module.__dict__)
    return module


@pytest.mark.parametrize("name", ["mine", "statistics"])
@pytest.mark.parametrize("source", HIDDEN.values(), ids=HIDDEN)
def test_what_a_scorer_depends_on_is_told_wherever_it_is(source, name, monkeypatch):
    """Also in a person's own module that has the name of one of Python's."""
    first, again, other = (shown(loaded(name, source.format(k), monkeypatch).score) for k in (1, 1, 2))
    assert first == again != other


def test_what_a_scorer_takes_from_another_module_is_told(monkeypatch):
    found = []
    for k, unused in ((1, 1), (1, 2), (2, 2)):
        loaded("mine_too", f"unused = {unused}\ndef a(): return b\nb = {k}", monkeypatch)
        found.append(shown(loaded("mine", "import mine_too\ndef score(estimator, x, y): return mine_too.a()", monkeypatch).score))
    assert found[0] == found[1] != found[2]


def test_modules_that_know_each_other_end(monkeypatch):
    one, two = loaded("one", "def f(): return two.f()", monkeypatch), loaded("two", "def f(): return one.f()", monkeypatch)
    one.two, one.one, two.one, two.two = two, one, one, two
    assert shown(one.f) == shown(one.f) != shown(two.f)


def test_the_version_of_a_package_is_told(monkeypatch):
    package = loaded("package", "class A:\n    def __call__(self): return 1\na = A()", monkeypatch)
    package.__file__ = "/usr/lib/python3/site-packages/package/__init__.py"
    found = []
    for package.__version__ in ("1.0", "1.0", "1.1"):
        found.append(shown(package.a))
    assert found[0] == found[1] != found[2]


def test_settings_are_the_same_in_any_order_of_their_names():
    assert shown({"C": [1, 2], "tol": scorer(1)}) == shown({"tol": scorer(1), "C": [1, 2]}) != shown({"tol": scorer(1), "C": [2, 1]})


def test_what_holds_itself_ends():
    loop = [Ridge]
    loop.append(loop)
    assert shown(loop) == shown(loop)


def test_another_process_finds_the_same():
    code = "import test_models_content as t; print([t.shown(rule(1)) for rule in t.RULES], t.shown(t.one_of))"
    found = []
    for seed in ("1", "2"):
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        found.append(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout)
    assert found[0] == found[1]


def one_of(estimator, x, y):
    return y in {"face", "house", "cat", "shoe"}


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("estimator", pipeline(5), pipeline(20)),
        ("scoring", lambda e, x, y: float((e.predict(x) == y).mean()), lambda e, x, y: -float((e.predict(x) == y).mean())),
        ("scoring", scorer(1), scorer(2)),
    ],
)
def test_a_record_of_another_setting_is_refused(name, before, now, tmp_path):
    x, y = np.random.default_rng(0).standard_normal((24, 40)), np.tile(["a", "b"], 12)
    groups, path = np.repeat(["1", "2", "3"], 8), tmp_path / "null.npz"
    settings = {"screening_percentile": None} | ({} if name == "estimator" else {"param_grid": {"C": 1}})
    first = permutation_test(Decoder(**settings, **{name: before}), x, y, groups, n_permutations=2, path=path)
    again = permutation_test(Decoder(**settings, **{name: clone(before, safe=False)}), x, y, groups, n_permutations=2, path=path)
    np.testing.assert_array_equal(first.null, again.null)
    with pytest.raises(DecodingError, match=f"{name} was .* #.* and is .* #"):
        permutation_test(Decoder(**settings, **{name: now}), x, y, groups, n_permutations=2, path=path)
