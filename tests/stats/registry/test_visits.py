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


def with_empty_visits():
    """Subject 0 has visits with nothing measured at 0, 2 and 5; subject 1 nothing at all."""
    subject, times = np.array([0, 0, 0, 0, 0, 1, 1]), np.array([0.0, 1, 2, 3, 5, 4, 6])
    values = np.array([[np.nan] * 2, [1, np.nan], [np.nan] * 2, [np.nan, 3], [np.nan] * 2, [np.nan] * 2, [np.nan] * 2])
    return from_rows(subject, times, values, np.zeros((2, 0)), items=("a", "b"))[0]


def test_visits_at_which_nothing_was_measured_are_not_counted_among_the_first():
    visits = with_empty_visits()
    one = visits.first_measured(1)
    np.testing.assert_array_equal(one.n_visits, [2, 2])
    np.testing.assert_array_equal(one.times, [[0, 1], [4, 6]])
    np.testing.assert_array_equal(one.values[0], [[np.nan] * 2, [1, np.nan]])
    two = visits.first_measured(2)
    np.testing.assert_array_equal(two.times, [[0, 1, 2, 3], [4, 6, 6, 6]])
    np.testing.assert_array_equal(two.n_visits, [4, 2])
    np.testing.assert_array_equal(visits.first_measured(9).values, visits.values)


def test_measured_visits_are_those_with_any_item():
    visits = with_empty_visits().measured()
    np.testing.assert_array_equal(visits.times, [[1, 3], [4, 4]])
    np.testing.assert_array_equal(visits.n_visits, [2, 1])
    np.testing.assert_array_equal(visits.values[0], [[1, np.nan], [np.nan, 3]])
    complete = made_up()[0]
    np.testing.assert_array_equal(complete.measured().values, complete.values)
    np.testing.assert_array_equal(complete.measured().times, complete.times)
