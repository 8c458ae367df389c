"""Gaps in reporting as a chain of two states."""

import numpy as np
import pytest

from dynapath._gaps import missing_by_chain


def test_gaps_start_and_go_on_with_the_given_probabilities():
    p_start, p_stay = 0.1, 0.7
    missing = missing_by_chain(np.random.default_rng(0), 2000, 100, p_start, p_stay)
    before, now = missing[:, :-1], missing[:, 1:]
    for state, p in ((False, p_start), (True, p_stay)):
        n = (before == state).sum()
        # Four standard errors of a proportion.
        assert abs(now[before == state].mean() - p) < 4 * np.sqrt(p * (1 - p) / n)


def test_the_share_missing_tends_to_that_of_the_stationary_chain():
    missing = missing_by_chain(np.random.default_rng(0), 5000, 60, 0.05, 0.75)
    assert abs(missing[:, 30:].mean() - 0.05 / (0.05 + 0.25)) < 0.01


def test_the_first_day_is_reported_and_the_extremes_are_certain():
    rng = np.random.default_rng(0)
    assert not missing_by_chain(rng, 50, 20, 0.0, 0.9).any()
    always = missing_by_chain(rng, 50, 20, 1.0, 1.0)
    assert not always[:, 0].any()
    assert always[:, 1:].all()
    np.testing.assert_array_equal(missing_by_chain(rng, 1, 5, 1.0, 0.0), [[False, True, False, True, False]])


@pytest.mark.parametrize("wrong", [{"p_start": 1.2, "p_stay": 0.5}, {"p_start": 0.2, "p_stay": -0.1}])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="is a probability"):
        missing_by_chain(np.random.default_rng(0), 2, 3, **wrong)
