"""Each way around a fault of dask-ml, beside the fault itself."""

from __future__ import annotations

import gc
import pickle
import threading
import warnings

import dask
import numpy as np
import pytest
from dask_ml.model_selection import GridSearchCV as DaskMlGridSearchCV
from distributed import Client, LocalCluster
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from daskdecode.tuning.dask_ml import SettingsSearch, active_get, without_passthrough


def data(n=60, p=5, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return rng.standard_normal((n, p)) + 0.8 * y[:, None], y


def accuracy(model, X, y):
    return float(np.mean(model.predict(X) == y))


class Fails(ClassifierMixin, BaseEstimator):
    """Refuses one setting."""

    def __init__(self, C=1):
        self.C = C

    def fit(self, X, y):
        if self.C == 2:
            raise ValueError("this setting cannot be fitted")
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])


@pytest.fixture
def client():
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as found,
    ):
        yield found
    gc.collect()


def test_a_search_gives_what_scikit_learn_gives():
    x, y = data()
    settings = [{"C": c} for c in (0.01, 1.0, 100.0)]
    model = LinearSVC(random_state=0)
    ours = SettingsSearch(model, settings, scoring=accuracy, cv=KFold(7), refit=True).fit(x, y)
    theirs = GridSearchCV(model, {"C": [0.01, 1.0, 100.0]}, scoring=accuracy, cv=KFold(7)).fit(x, y)
    for name in ("mean_test_score", "std_test_score", "rank_test_score", "split6_test_score"):
        np.testing.assert_allclose(ours.cv_results_[name], theirs.cv_results_[name], rtol=1e-12, err_msg=name)
    assert ours.best_params_ == theirs.best_params_
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    assert clone(ours).settings == settings


def test_folds_count_the_same_whatever_their_size():
    x, y = data(50)
    folds = [(np.arange(10, 50), np.arange(10)), (np.arange(20), np.arange(20, 50))]
    settings = [{"C": 1.0}]
    found = SettingsSearch(LinearSVC(), settings, scoring=accuracy, cv=folds).fit(x, y).cv_results_
    each = [found["split0_test_score"][0], found["split1_test_score"][0]]
    assert each[0] != each[1]
    assert found["mean_test_score"][0] == pytest.approx(np.mean(each), abs=1e-15)
    theirs = DaskMlGridSearchCV(LinearSVC(), {"C": [1.0]}, scoring=accuracy, cv=folds, refit=False, scheduler="sync").fit(x, y)
    assert theirs.cv_results_["mean_test_score"][0] == pytest.approx(np.average(each, weights=[10, 30]), abs=1e-15)


def _fit_in_a_thread(search, x, y):
    outcome = []

    def run():
        try:
            search.fit(x, y)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    return thread, outcome


def test_a_fit_that_raises_on_a_cluster_ends_the_search_with_its_error(client):
    x, y = data()
    settings = [{"C": 1}, {"C": 2}]
    thread, outcome = _fit_in_a_thread(SettingsSearch(Fails(), settings, scoring=accuracy, cv=KFold(3)), x, y)
    assert not thread.is_alive()
    assert str(outcome[0]) == "this setting cannot be fitted"


@pytest.mark.slow
def test_dask_ml_alone_waits_for_ever(client):
    # If this fails, dask-ml has been mended and active_get can go.
    x, y = data()
    thread, outcome = _fit_in_a_thread(DaskMlGridSearchCV(Fails(), {"C": [1, 2]}, scoring=accuracy, cv=KFold(3)), x, y)
    assert thread.is_alive()
    assert not outcome
    client.close()


def test_a_failed_fit_may_count_as_nan_and_ranks_last():
    x, y = data()
    settings = [{"C": 2}, {"C": 1}]
    found = SettingsSearch(Fails(), settings, scoring=accuracy, cv=KFold(3), error_score=np.nan, refit=True).fit(x, y)
    np.testing.assert_array_equal(np.isnan(found.cv_results_["mean_test_score"]), [True, False])
    np.testing.assert_array_equal(found.cv_results_["rank_test_score"], [2, 1])
    assert found.best_params_ == {"C": 1}
    assert np.isnan(found.error_score)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = DaskMlGridSearchCV(
            Fails(), {"C": [2, 1]}, scoring=accuracy, cv=KFold(3), error_score=np.nan, refit=False, scheduler="sync"
        )
        assert theirs.fit(x, y).cv_results_["rank_test_score"].min() < 0


def test_a_search_is_what_its_estimator_is():
    x, y = np.arange(24.0)[:, None], np.repeat([0, 1], 12)
    search = SettingsSearch(LinearSVC(), [{"C": 1.0}], scoring=accuracy, cv=StratifiedKFold(2), refit=True)
    assert is_classifier(search)
    assert not is_classifier(DaskMlGridSearchCV(LinearSVC(), {}))
    # An outer cross-validation therefore keeps both classes in every training set; in order, KFold(2) would not.
    assert np.isfinite(cross_validate(search, x, y, cv=2, scoring=accuracy)["test_score"]).all()


def test_steps_may_be_passed_through():
    x, y = data()
    pipeline = Pipeline([("scale", StandardScaler()), ("svc", LinearSVC(random_state=0))])
    steps = [StandardScaler(), "passthrough"]
    ours = SettingsSearch(pipeline, [{"scale": step} for step in steps], scoring=accuracy, cv=KFold(5)).fit(x, y)
    theirs = GridSearchCV(pipeline, {"scale": steps}, scoring=accuracy, cv=KFold(5)).fit(x, y)
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], rtol=1e-12)
    with pytest.raises(AttributeError, match="'str' object"):
        DaskMlGridSearchCV(pipeline, {"scale": steps}, scoring=accuracy, cv=5, scheduler="sync").fit(x, y)
    assert without_passthrough([{"a": "passthrough", "b": 1}]) == [{"a": None, "b": 1}]


class CountsFits(StandardScaler):
    count = 0

    def fit(self, X, y=None):
        type(self).count += 1
        return super().fit(X, y)


def test_steps_that_settings_share_are_fitted_once_a_fold():
    x, y = data()
    CountsFits.count = 0
    pipeline = Pipeline([("scale", CountsFits()), ("svc", LinearSVC())])
    SettingsSearch(pipeline, [{"svc__C": c} for c in (0.1, 1.0, 10.0)], scoring=accuracy, cv=KFold(4)).fit(x, y)
    assert CountsFits.count == 4


def test_no_copies_of_folds_are_kept():
    search = SettingsSearch(LinearSVC(), [{"C": 1.0}], scoring=accuracy, cv=KFold(4))
    assert not search.cache_cv
    assert DaskMlGridSearchCV(LinearSVC(), {}).cache_cv
    assert not hasattr(search.fit(*data()), "dask_graph_")


def test_the_scheduler_that_is_active_does_the_work():
    assert active_get() is dask.threaded.get
    with dask.config.set(scheduler="synchronous"):
        assert active_get() is dask.local.get_sync


def test_without_other_word_a_client_is_active(client):
    assert not hasattr(active_get(), "__self__")
    assert active_get()({"a": (sum, [1, 2])}, ["a"]) == [3]
    with dask.config.set(scheduler="synchronous"):
        assert active_get() is dask.local.get_sync


def test_settings_can_be_sent_to_a_worker_that_is_started_meanwhile(client):
    with dask.config.set(scheduler=active_get()):
        assert pickle.loads(pickle.dumps(dask.config.config))["scheduler"] == "dask.distributed"
