"""Times are read as they were written, and compared with what rounding leaves."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import dynapath as dp
from dynapath._times import in_decimals, same_within, settled
from dynapath._visits import Visits
from dynapath.dynamics import GroupDynamics, LinearMixture, TimeScale
from dynapath.metrics.interpolate import neighbouring_times
from dynapath.models.visit_forecast import at_times
from dynapath.read.counts import read_times
from dynapath.read.visits import read_visits

YEARS = [2020.0, 2020.1, 2020.3, 2020.7, 2021.0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "Float32", "float16"])
def test_narrow_numbers_are_read_as_the_decimals_they_stand_for(dtype):
    written = YEARS if dtype != "float16" else [0.0, 0.1, 0.3, 2.5]
    assert in_decimals(pd.Series(written).astype(dtype)).tolist() == written
    if dtype != "Float32":
        assert in_decimals(np.array(written, dtype=dtype)).tolist() == written
        assert in_decimals(torch.tensor(written, dtype=getattr(torch, dtype))).tolist() == written


def test_missing_whole_and_shaped_times_are_read_too():
    assert np.isnan(in_decimals(pd.Series([1, None], dtype="Float32"))).tolist() == [False, True]
    assert in_decimals([[1, 2], [3, 4]]).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert in_decimals(np.float32(0.1)) == 0.1
    assert in_decimals(np.array([[0.1], [np.nan]], dtype="float32")).shape == (2, 1)


def test_times_that_differ_by_rounding_are_one():
    times = np.array([0.0, 0.3, 0.1 + 0.2, 1.0, 3 * (1 / 3), np.nan])
    assert np.unique(settled(times)[:5]).tolist() == [0.0, 0.3, 1.0]
    assert np.isnan(settled(times)[5])


@pytest.mark.parametrize("times", [[0, 1e-9, 1.0], [1.6e18, 1.6e18 + 256, 1.6e18 + 512], [0, 2e-13, 4e-13]])
def test_times_that_differ_by_more_stay_apart(times):
    assert settled(np.array(times, dtype=float)).tolist() == times
    scale = TimeScale.of(times)
    assert len(np.unique(scale.scaled(times))) == 3
    np.testing.assert_allclose(scale.scaled(times) * scale.span + scale.origin, times, rtol=1e-9)


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-8, 1e-11])
def test_model_times_keep_short_steps_to_a_millionth(gap):
    scaled = TimeScale.of([0.0, gap / 3, 2 * gap / 3, 1.0]).scaled([0.0, gap / 3, 2 * gap / 3, 1.0])
    np.testing.assert_allclose(np.diff(scaled)[:2], gap / 3, rtol=1e-5 if gap > 1e-9 else 1e-3)


@pytest.mark.parametrize("unit", [24.0, 1 / 7, 86400.0, 1e-9, 0.1])
@pytest.mark.parametrize("origin", [0.0, 2020.0, -3.7])
def test_the_unit_of_time_does_not_leak_in_by_rounding(unit, origin):
    rng = np.random.default_rng(0)
    times = origin + np.round(np.sort(rng.uniform(0, 30, 40)), 2)
    expected = TimeScale.of(times).scaled(times)
    np.testing.assert_array_equal(TimeScale.of(times * unit).scaled(times * unit), expected)


def test_a_regular_design_has_one_scale_in_all_units():
    # A gap of a power of ten of the span lies on the border between two numbers of digits.
    for n in (10, 100, 1000, 10000):
        times = np.arange(n + 1) / n
        digits = {TimeScale.of(times * unit).digits for unit in (1.0, 3.0, 0.1, 1 / 7, 86400.0, 1e-9)}
        assert len(digits) == 1


def test_seconds_since_1970_are_rounded_to_what_is_known_of_them():
    # Float64 holds them to 2.4e-7 s; in minutes they round otherwise.
    times = 1.6e9 + np.array([0.0, 1 / 3, 2.1, 7.0])
    np.testing.assert_array_equal(TimeScale.of(times).scaled(times), TimeScale.of(times / 60).scaled(times / 60))


def test_years_in_single_precision_have_the_scale_of_double_precision():
    single, double = np.array(YEARS, dtype="float32"), np.array(YEARS)
    np.testing.assert_array_equal(TimeScale.of(single).scaled(single), TimeScale.of(double).scaled(double))
    assert GroupDynamics(LinearMixture(1, 2), single).observed_times.tolist() == YEARS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_time_is_compared_to_the_precision_that_holds_the_others(dtype):
    sevenths = np.arange(8, dtype=dtype) / np.asarray(7, dtype=dtype)
    assert abs(float(in_decimals(sevenths)[1]) - 1 / 7) <= same_within(sevenths)
    assert same_within(sevenths) < 1e-6
    assert same_within(np.array([0, 1e-12, 1.0])) < 1e-12


def test_what_rounding_puts_before_the_first_snapshot_is_the_first_snapshot():
    groups = GroupDynamics(LinearMixture(1, 2), [0.3, 1.0])
    path = groups.trajectories([0.3 - 1e-16, 1.0])
    np.testing.assert_array_equal(path.mean, groups.trajectories([0.3, 1.0]).mean)
    assert groups.is_before([0.3 - 1e-16, 0.3, 0.29]).tolist() == [False, False, True]
    assert groups.is_after([1.0 + 2e-16, np.float32(1.0), 1.01]).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="before the first snapshot"):
        groups.trajectories([0.299])


def test_a_time_is_not_its_own_neighbour():
    times = np.array([0.0, 0.3, 1.0])
    assert neighbouring_times(times, 0.1 + 0.2) == (0.0, 1.0)
    assert neighbouring_times(times, 0.31) == (0.3, 1.0)


# --- tables -------------------------------------------------------------------------------------------------------------


def snapshots(times, n=30, seed=0):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"time": np.repeat(times, n)}, index=[f"c{i}" for i in range(n * len(times))])
    drift = (np.repeat(np.asarray(times, dtype=float), n) - float(times[0]))[:, None] * [1.0, -0.5]
    cells = ad.AnnData(X=rng.poisson(3, (len(obs), 12)).astype("float32"), obs=obs)
    cells.obsm["X_pca"] = drift + 0.2 * rng.standard_normal((len(obs), 2))
    return cells


def test_cells_are_read_with_the_times_that_were_written():
    cells = snapshots(YEARS)
    cells.obs["time"] = cells.obs["time"].astype("float32")
    assert np.unique(read_times(cells, "time")).tolist() == YEARS
    cells.obs["time"] = np.where(np.arange(150) < 31, 0.1 + 0.2, np.where(np.arange(150) < 75, 0.3, 1.0))
    assert len(np.unique(read_times(cells, "time"))) == 2


def test_a_fit_does_not_know_the_precision_of_its_times():
    paths = []
    for dtype in ("float64", "float32"):
        cells = snapshots(YEARS)
        cells.obs["time"] = cells.obs["time"].astype(dtype)
        training = dp.models.Training(n_restarts=2, prior_steps=20)
        dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="X_pca", n_groups=1, training=training)
        paths.append(dp.get.trajectories(cells, times=np.array([2020.1, 2021.0], dtype=dtype)))
    assert not paths[1]["extrapolated"].any()
    pd.testing.assert_frame_equal(paths[0], paths[1])


@pytest.mark.parametrize("asked", [0.05, np.float32(0.05), 0.025 + 0.025])
def test_a_time_of_a_single_precision_column_can_be_held_out(asked):
    cells = snapshots(np.array([0.0, 0.025, 0.05, 0.1, 0.3 / 7], dtype="float32"))
    scores = dp.tl.evaluate_heldout(cells, time_key="time", holdout=asked, methods=["floor", "forward"], n_pcs=3)
    assert (scores["holdout"] == 0.05).all()
    again = dp.tl.evaluate_heldout(cells, time_key="time", holdout=0.3 / 7, methods=["floor"], n_pcs=3)
    assert again["holdout"].iloc[0] == pytest.approx(0.3 / 7, rel=1e-7)
    with pytest.raises(ValueError, match="was not observed"):
        dp.tl.evaluate_heldout(cells, time_key="time", holdout=0.0501, methods=["floor"], n_pcs=3)


def test_visits_are_read_with_the_times_that_were_written():
    times = np.array([0, 0.1, 0, 0.7, 2.3], dtype="float32")
    obs = pd.DataFrame({"patient": list("aabbb"), "time": times}, index=list("vwxyz"))
    table = ad.AnnData(np.arange(5.0)[:, None], obs=obs)
    visits = read_visits(table, subject_key="patient", time_key="time").visits
    assert visits.times[1].tolist() == [0.0, 0.7, 2.3]
    assert visits.times[0, 1] == 0.1


class Counting:
    """A forecast that is the number of visits it was given."""

    @staticmethod
    def predict(history, times):
        known = np.where(np.isfinite(times), history.n_visits[:, None], np.nan)[..., None]
        return known, np.ones_like(known)


def test_a_visit_counts_at_its_own_time_whatever_rounding_makes_of_that():
    present = np.ones((1, 3), dtype=bool)
    visits = Visits(
        np.array([[0.0, 0.3, 1.0]]), np.ones((1, 3, 1)), present, np.empty((1, 0)), ("x",), ("gaussian",), ("a",), ()
    )
    mean, _, used = at_times(Counting, visits, np.array([[-1e-17, 0.3 - 6e-17, 0.1 + 0.2, 0.29, 0.9]]))
    assert used.tolist() == [[1, 2, 2, 1, 2]]
    assert mean[0, :, 0].tolist() == [1, 2, 2, 1, 2]


def test_items_of_one_visit_stay_together_though_their_times_are_rounded_differently():
    long = pd.DataFrame(
        {"patient": list("aaa"), "time": [0.0, 0.3, 0.1 + 0.2], "item": ["x", "x", "y"], "value": [1.0, 2.0, 3.0]}
    )
    visits = dp.pp.visits_from_long(long, subject="patient", time="time", item="item", value="value")
    assert visits.obs["time"].tolist() == [0.0, 0.3]
    assert visits.X[1].tolist() == [2.0, 3.0]
