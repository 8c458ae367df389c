"""Calibration: ranks by hand, coverage where errors are not normal, and the spread that grows with time."""

from __future__ import annotations

import numpy as np
import pytest

from dynapath.stats.registry.calibrate import Calibration, Errors, conformal_quantile


def drawn(n, seed, *, own_sd):
    """Errors with heavy tails, whose size grows with dt and is larger at the first landmark."""
    rng = np.random.default_rng(seed)
    item, k, dt = rng.integers(0, 2, n), rng.integers(1, 6, n), rng.uniform(0.5, 3, n)
    size = (1 + item) * (0.5 + 0.4 * dt) * np.where(k == 1, 1.5, 1.0)
    error = size * rng.standard_t(4, n)
    return Errors(item, k, dt, error, size * 0.7 if own_sd else np.full(n, np.nan))


def test_the_quantile_is_the_rank_that_a_new_value_needs():
    z = np.arange(1.0, 10.0)  # nine values: the ninth tenth of a new one is at or below the largest
    assert conformal_quantile(z, 0.9) == 9
    assert conformal_quantile(z, 0.5) == 5
    assert conformal_quantile(z, 0.99) == 9


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


def test_a_rare_landmark_borrows_from_the_others():
    errors = drawn(500, 0, own_sd=True)
    rare = Errors(errors.item, np.where(np.arange(500) < 10, 2, 1), errors.dt, errors.error, errors.sd)
    calibration = Calibration.of(rare, 2)
    assert np.isfinite(calibration.quantiles).all()
