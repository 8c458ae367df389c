"""The rules and regressions that a forecast of a panel must beat."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dynapath.stats import baselines
from dynapath.stats.baselines import BASELINES, carry_forward, interpolate, ols_coefficients, published_coefficients

NAN = np.nan


def no_covariates(y, horizon=1):
    return np.empty((0, *y.shape)), np.empty((0, len(y), horizon))


def panel(seed=0, n_units=4, n_days=30, missing=0.2):
    """Reports with gaps, and one covariate as (steps to each day, steps ahead)."""
    rng = np.random.default_rng(seed)
    y = rng.poisson(5, (n_units, n_days)).astype(float)
    y[:, 1:][rng.random((n_units, n_days - 1)) < missing] = NAN
    z = rng.gamma(2, 1, (n_units, n_days))
    x = np.concatenate([np.full((n_units, 1), NAN), z[:, :-1]], axis=1)[None]
    return y, z, x, z[None, :, -1:]


def test_values_are_carried_forward_as_pandas_does():
    y = np.array([[NAN, 1, NAN, NAN, 3, NAN], [NAN] * 6, [2, NAN, 0, NAN, NAN, 1]])
    np.testing.assert_array_equal(carry_forward(y), pd.DataFrame(y).ffill(axis=1))


def test_days_before_the_first_report_can_be_taken_for_zero():
    y = np.array([[NAN, NAN, 1, NAN], [NAN] * 4, [2, NAN, NAN, 3]])
    np.testing.assert_array_equal(baselines.zero_before_first(y), [[0, 0, 1, NAN], [NAN] * 4, [2, NAN, NAN, 3]])


def test_interpolation_is_a_line_between_reports_and_flat_after_them():
    y = np.array([[NAN, 1, NAN, NAN, 4, NAN], [NAN] * 6, [2, NAN, 0, NAN, NAN, 3]])
    np.testing.assert_allclose(interpolate(y), [[NAN, 1, 2, 3, 4, 4], [NAN] * 6, [2, 1, 0, 1, 2, 3]])


def test_the_simple_rules_are_what_their_names_say():
    y = np.array([[2.0, 4, NAN, 5], [3, 2, 1, 0], [1, 2, 4, 4], [NAN, NAN, 7, NAN]])
    x, ahead = no_covariates(y, horizon=2)
    expected = {
        "zero": [[5, 5], [0, 0], [4, 4], [7, 7]],
        "mean": [[6, 7], [-1, -2], [5, 6], [7, 7]],
        "modified_mean": [[6, 7], [0, 0], [5, 6], [7, 7]],  # the second unit is at 0
        "modified_mean_slide": [[6, 7], [-1, -2], [4, 4], [7, 7]],  # the third and the fourth did not move
    }
    for name, levels in expected.items():
        np.testing.assert_allclose(BASELINES[name](y, x, ahead), levels, err_msg=name)


def test_the_mean_change_is_the_mean_of_the_differences_of_carried_values():
    y, _, _, _ = panel()
    np.testing.assert_allclose(baselines.mean_increment(y), np.diff(carry_forward(y), axis=1).mean(1))


def test_ols_is_lstsq_of_the_change_on_what_was_known_before_it():
    y, z, x, _ = panel()
    filled = carry_forward(y)
    for unit, b in enumerate(ols_coefficients(y, x)):
        design = np.column_stack([np.ones(29), filled[unit, :-1], z[unit, :-1]])
        np.testing.assert_allclose(b, np.linalg.lstsq(design, np.diff(filled[unit]), rcond=None)[0], rtol=1e-9)


def test_published_ols_regresses_on_the_end_of_the_change():
    y, z, x, ahead = panel()
    filled = carry_forward(y)
    for unit, b in enumerate(published_coefficients(y, np.concatenate([x, ahead], axis=2))):
        design = np.column_stack([np.ones(29), filled[unit, 1:], z[unit, 1:]])
        np.testing.assert_allclose(b, np.linalg.lstsq(design, np.diff(filled[unit]), rcond=None)[0], rtol=1e-9)


def test_both_regressions_of_hospital_124_have_the_published_coefficients(data_dir):
    """Printed by the published code: -0.138407, -0.011360, 0.004048. Aligned, it is close to the increment model."""
    file = data_dir / "icu" / "paper_fixtures" / "hospital124.csv"
    if not file.is_file():
        pytest.skip(f"no {file}")
    table = pd.read_csv(file)[:69]
    y = table["icu_covid"].where(table["reported"]).to_numpy(float, copy=True)[None]
    y[0, 0] = 13.0  # before the first report the publication carried a value from before its window
    x = np.concatenate([[NAN], table["z"].to_numpy(float)])[None, None]
    # Three quarters of the covariate are interpolated, which moves the last digits.
    np.testing.assert_allclose(published_coefficients(y, x)[0], [-0.138407, -0.011360, 0.004048], atol=5e-5)
    np.testing.assert_allclose(ols_coefficients(y, x[:, :, :-1])[0], [0.004, -0.145, 0.116], atol=5e-4)


def test_regressions_go_on_step_by_step():
    y, _, x, ahead = panel()
    ahead = np.concatenate([ahead, ahead + 1], axis=2)
    for name, coefficients in (
        ("ols", ols_coefficients(y, x)),
        ("ols_published", published_coefficients(y, np.concatenate([x, ahead[:, :, :1]], axis=2))),
    ):
        levels = BASELINES[name](y, x, ahead)
        before = carry_forward(y)[:, -1]
        for h in range(2):
            known = np.column_stack([np.ones(4), before, ahead[0, :, h]])
            before = before + (known * coefficients).sum(1)
            np.testing.assert_allclose(levels[:, h], before, rtol=1e-12)


def test_collinear_regressors_get_the_solution_of_smallest_norm():
    y = np.tile([[3.0]], (1, 10))
    x = np.zeros((1, 1, 10))
    np.testing.assert_allclose(ols_coefficients(y, x), 0, atol=1e-12)
    np.testing.assert_allclose(baselines.ols(y, x, np.zeros((1, 1, 3))), 3)


@pytest.mark.parametrize("name", BASELINES)
def test_a_unit_without_reports_has_no_forecast_and_harms_no_other(name):
    y, _, x, ahead = panel()
    alone = BASELINES[name](y, x, ahead)
    y = np.vstack([y, np.full((1, 30), NAN)])
    x, ahead = np.concatenate([x, x[:, :1]], axis=1), np.concatenate([ahead, ahead[:, :1]], axis=1)
    levels = BASELINES[name](y, x, ahead)
    np.testing.assert_allclose(levels[:-1], alone)
    assert np.isnan(levels[-1]).all()


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "ols_published"])
def test_covariates_before_the_first_report_do_not_matter(name):
    y, _, x, ahead = panel()
    y[:, :5] = NAN
    y[:, 5] = 4.0
    changed = x.copy()
    changed[:, :, :6] = NAN
    np.testing.assert_allclose(BASELINES[name](y, changed, ahead), BASELINES[name](y, x, ahead))
