"""Confounds of new samples: told apart by name, never taken from the fit; and messages about samples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from daskdecode import Decoder, permutation_test
from daskdecode.errors import DecodingError


@pytest.fixture
def study():
    rng = np.random.default_rng(0)
    runs, y = np.repeat([1, 2, 3], [11, 8, 9]), np.arange(28) % 2
    confounds = pd.DataFrame(rng.standard_normal((28, 2)), columns=["trans_x", "rot_z"])
    x = rng.standard_normal((28, 130)) + confounds.to_numpy() @ rng.standard_normal((2, 130)) + 0.5 * y[:, None]
    return x, y, runs, confounds


@pytest.fixture
def decoder():
    return Decoder(param_grid={"C": 1}, standardize="zscore_fold")


def test_confounds_of_new_samples_are_matched_by_name(study, decoder):
    x, y, runs, confounds = study
    decoder.fit(x, y, runs, confounds=confounds)
    expected = decoder.decision_function(x, confounds=confounds)
    turned = confounds[["rot_z", "trans_x"]]
    np.testing.assert_array_equal(decoder.decision_function(x, confounds=turned), expected)
    np.testing.assert_array_equal(decoder.decision_function(x, confounds=confounds.to_numpy()), expected)
    with pytest.raises(DecodingError, match=r"\['trans_x', 'rot_z'\].*\['trans_x', 'rot_y'\]"):
        decoder.predict(x, confounds=confounds.rename(columns={"rot_z": "rot_y"}))


def test_values_of_the_fit_are_not_taken_for_those_of_new_samples(study, decoder):
    x, y, runs, confounds = study
    decoder.set_params(confounds=confounds.to_numpy()).fit(x, y, runs)
    with pytest.raises(DecodingError, match=r"fitted with 2 confounds, but 0 are given for the new samples: pass confounds="):
        decoder.predict(x)
    assert decoder.score(x, y, confounds=confounds.to_numpy()) > 0.9


def test_an_empty_list_of_confounds_is_refused_by_what_it_is(study, decoder):
    x, y, runs, _ = study
    with pytest.raises(DecodingError, match="names no variable"):
        decoder.set_params(confounds=[]).fit(x, y, runs)


def test_a_mask_of_zeros_and_ones_is_told_from_sample_numbers(study, decoder):
    x, y, runs, _ = study
    with pytest.raises(DecodingError, match=r"pass booleans: sample_mask\.astype\(bool\)"):
        decoder.fit(x, y, runs, sample_mask=(np.arange(28) < 25).astype(int))


def test_labels_that_are_infinite_are_refused_without_a_warning(study, decoder):
    x, y, runs, _ = study
    with pytest.raises(DecodingError, match=r"not whole \(inf\)"):
        decoder.fit(x, np.where(y == 1, np.inf, 0), runs)


def test_a_file_of_something_else_is_refused_without_advice_to_load_it(study, decoder, tmp_path):
    x, y, runs, _ = study
    (tmp_path / "other.npz").write_text("text")
    with pytest.raises(DecodingError, match="damaged, or not the file of a permutation test") as refused:
        permutation_test(decoder, x, y, runs, n_permutations=1, path=tmp_path / "other.npz")
    assert "unsafe" not in str(refused.value)
