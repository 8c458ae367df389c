"""Calibration: ranks by hand, coverage where errors go together within patients, and the spread that grows with time."""

from __future__ import annotations

import numpy as np
import pytest

from dynapath.stats.registry.calibrate import (
    Calibration,
    Errors,
    conformal_quantiles,
    patients_needed,
    strata,
    stratum_quantiles,
)


def drawn(n, seed, *, own_sd):
    """Errors with heavy tails, whose size grows with dt and is larger at the first landmark, one of each patient."""
    rng = np.random.default_rng(seed)
    item, k, dt = rng.integers(0, 2, n), rng.integers(1, 6, n), rng.uniform(0.5, 3, n)
    size = (1 + item) * (0.5 + 0.4 * dt) * np.where(k == 1, 1.5, 1.0)
    error = size * rng.standard_t(4, n)
    return Errors(np.arange(n), item, k, dt, error, size * 0.7 if own_sd else np.full(n, np.nan))


def clustered(rng, n_patients):
    """Errors of patients who differ in size and miss together; those with large errors have few visits."""
    sickness = rng.exponential(size=n_patients)
    n = 1 + rng.poisson(6 / (1 + sickness))
    subject = np.repeat(np.arange(n_patients), n)
    k = np.concatenate([np.arange(1, one + 1) for one in n])
    dt = rng.uniform(0.5, 3, len(subject))
    size = (0.5 + 0.4 * dt) * np.exp(0.6 * sickness)[subject] * np.where(k == 1, 1.5, 1.0)
    return subject, k, dt, size * (0.8 * rng.normal(size=n_patients)[subject] + 0.6 * rng.standard_t(4, len(subject)))


def test_the_quantile_is_the_rank_that_a_new_value_needs():
    z = np.arange(1.0, 10.0)  # nine values: the ninth tenth of a new one is at or below the largest
    np.testing.assert_array_equal(conformal_quantiles(z, np.arange(9), [0.5, 0.9, 0.99]), [5, 9, np.inf])


def test_every_patient_has_the_same_weight_shared_by_its_forecasts():
    z, subject = np.array([1.0, 10.0, 2.0, 3.0, 4.0]), np.array([7, 3, 7, 7, 7])
    # Of two patients and the new one: a third lies up to 4, two thirds up to 10.
    levels = [1 / 12, 1 / 3, 0.34, 2 / 3, 0.67]
    np.testing.assert_array_equal(conformal_quantiles(z, subject, levels), [1, 4, 10, 10, np.inf])
    again = conformal_quantiles(np.repeat(z, 5), np.repeat(subject, 5), levels)
    np.testing.assert_array_equal(again, conformal_quantiles(z, subject, levels))


@pytest.mark.parametrize(("level", "n"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_an_interval_is_finite_from_the_number_of_patients_on_that_it_needs(level, n):
    assert patients_needed(level) == n
    rng = np.random.default_rng(0)
    # However many forecasts each of them has.
    for n_patients, finite in ((n, True), (n - 1, False)):
        subject = np.repeat(np.arange(n_patients), 7)
        assert np.isfinite(conformal_quantiles(rng.random(len(subject)), subject, [level])[0]) == finite


@pytest.mark.parametrize(("n", "level"), [(5, 0.8), (9, 0.9), (60, 0.9), (99, 0.99)])
def test_a_forecast_of_a_new_patient_is_covered_although_errors_go_together_within_patients(n, level):
    rng = np.random.default_rng(0)
    covered, by_forecasts = [], []
    for _ in range(600):
        subject, _, _, error = clustered(rng, n + 1)
        z, new = np.abs(error), subject == n
        covered.append((z[new] <= conformal_quantiles(z[~new], subject[~new], [level])[0]).mean())
        by_forecasts.append((z[new] <= np.quantile(z[~new], level, method="higher")).mean())
    assert np.mean(covered) > level - 2 * np.std(covered) / np.sqrt(len(covered))
    # Where every forecast counts the same, the many of patients who do well make intervals too narrow.
    assert np.mean(by_forecasts) < np.mean(covered)


@pytest.mark.parametrize("n", [9, 30])
def test_intervals_of_models_without_standard_deviations_cover_new_patients(n):
    rng = np.random.default_rng(1)
    covered = [[], [], []]
    for _ in range(150):
        subject, k, dt, error = clustered(rng, n + 1)
        known = subject < n
        item, sd = np.zeros(len(k), dtype=int), np.full(len(k), np.nan)
        errors = Errors(*(values[known] for values in (subject, item, k, dt, error, sd)))
        _, (_, half) = Calibration.of(errors, 1).apply(item[~known], k[~known], dt[~known], sd[~known])
        assert np.isfinite(half).all()
        for stratum in np.unique(strata(k[~known])):
            here = strata(k[~known]) == stratum
            covered[stratum].append((np.abs(error[~known]) <= half)[here].mean())
    for shares in covered:
        assert np.mean(shares) > 0.9 - 2 * np.std(shares) / np.sqrt(len(shares))


@pytest.mark.parametrize("own_sd", [True, False])
def test_intervals_hold_for_every_item_and_landmark(own_sd):
    calibration = Calibration.of(drawn(20_000, 0, own_sd=own_sd), 2)
    new = drawn(40_000, 1, own_sd=own_sd)
    _, (half50, half90) = calibration.apply(new.item, new.k, new.dt, new.sd)
    for item in range(2):
        for k in (1, 2, 3):
            chosen = (new.item == item) & (np.minimum(new.k, 3) == k)
            # Some 2,000 errors learn a quantile: two standard errors of coverage are .014.
            assert np.mean(np.abs(new.error[chosen]) <= half90[chosen]) == pytest.approx(0.9, abs=0.02)
            assert np.mean(np.abs(new.error[chosen]) <= half50[chosen]) == pytest.approx(0.5, abs=0.03)


def test_the_spread_that_is_learned_grows_with_time():
    calibration = Calibration.of(drawn(20_000, 0, own_sd=False), 2)
    ratio = calibration.scale[:, 1] / calibration.scale[:, 0]
    np.testing.assert_allclose(ratio, 0.4 / 0.5, rtol=0.3)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_the_unit_of_time_does_not_matter(unit):
    errors = drawn(300, 0, own_sd=False)
    other = Errors(errors.subject, errors.item, errors.k, unit * errors.dt, errors.error, errors.sd)
    rows = (errors.item, errors.k)
    half = Calibration.of(errors, 2).apply(*rows, errors.dt, errors.sd)[1]
    np.testing.assert_allclose(Calibration.of(other, 2).apply(*rows, other.dt, other.sd)[1], half, rtol=1e-9)


def test_a_rare_landmark_borrows_from_those_with_fewer_visits_known():
    errors = drawn(500, 0, own_sd=True)
    rare = Errors(errors.subject, errors.item, np.where(np.arange(500) < 10, 2, 1), errors.dt, errors.error, errors.sd)
    quantiles = Calibration.of(rare, 2).quantiles
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=0) >= 0).all()


def test_the_first_landmark_borrows_from_none_since_all_others_are_easier():
    z, stratum = np.r_[np.full(5, 10.0), np.ones(100)], np.r_[np.zeros(5, dtype=int), np.ones(100, dtype=int)]
    quantiles = stratum_quantiles(z, np.arange(105), stratum, [0.5, 0.9])
    np.testing.assert_array_equal(quantiles, [[10, 1, 1], [np.inf, 1, 1]])


def test_an_item_without_any_forecast_has_infinite_intervals():
    errors = drawn(200, 0, own_sd=False)
    calibration = Calibration.of(errors, 3)
    one = np.array([2])
    _, half = calibration.apply(one, np.array([1]), np.array([1.0]), np.array([np.nan]))
    assert np.isinf(half).all()
    # Infinite also where the standard deviation is zero.
    few = Errors(
        *(values[:3] for values in (errors.subject, 0 * errors.item, errors.k, errors.dt, errors.error, errors.dt))
    )
    _, half = Calibration.of(few, 1).apply(0 * one, one, np.zeros(1), np.zeros(1))
    assert np.isinf(half[1]).all()
