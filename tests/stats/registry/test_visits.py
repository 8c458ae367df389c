"""Visits: the order of rows, padding, and what `take` and `first` leave."""

from __future__ import annotations

import numpy as np
import pytest

from dynapath.stats.registry.visits import from_rows

SUBJECT = np.array([1, 0, 1, 1, 0, 3])
TIMES = np.array([2.0, 5.0, 0.5, 1.0, -1.0, 7.0])
VALUES = np.arange(12.0).reshape(6, 2)
BASELINE = np.arange(4.0)[:, None]


def made_up():
    return from_rows(SUBJECT, TIMES, VALUES, BASELINE, items=("a", "b"))


def test_visits_are_in_the_order_of_time_and_rows_know_where_they_went():
    visits, place = made_up()
    np.testing.assert_array_equal(visits.n_visits, [2, 3, 0, 1])
    np.testing.assert_array_equal(visits.times[1], [0.5, 1, 2])
    np.testing.assert_array_equal(visits.times[tuple(place.T)], TIMES)
    np.testing.assert_array_equal(visits.values[tuple(place.T)], VALUES)


def test_padding_is_nothing_measured_at_the_last_time():
    visits, _ = made_up()
    np.testing.assert_array_equal(visits.times[0], [-1, 5, 5])
    np.testing.assert_array_equal(visits.times[2], [0, 0, 0])
    assert not visits.observed[~visits.present].any()
    np.testing.assert_array_equal(visits.last_time(), [5, 2, 0, 7])


def test_the_order_of_rows_does_not_matter():
    visits, _ = made_up()
    rows = np.random.default_rng(0).permutation(6)
    again, _ = from_rows(SUBJECT[rows], TIMES[rows], VALUES[rows], BASELINE, items=("a", "b"))
    np.testing.assert_array_equal(again.times, visits.times)
    np.testing.assert_array_equal(again.values, visits.values)


@pytest.mark.parametrize("chosen", [np.array([0, 3]), np.array([True, False, False, True])])
def test_taking_subjects_drops_visits_that_nobody_has(chosen):
    part = made_up()[0].take(chosen)
    assert part.times.shape == (2, 2)
    assert part.subjects == ("0", "3")
    np.testing.assert_array_equal(part.baseline[:, 0], [0, 3])


def test_the_first_visits_hold_nothing_of_later_ones():
    first = made_up()[0].first(1)
    np.testing.assert_array_equal(first.times[:, 0], [-1, 0.5, 0, 7])
    np.testing.assert_array_equal(first.n_visits, [1, 1, 0, 1])
    assert first.values.shape == (4, 1, 2)
