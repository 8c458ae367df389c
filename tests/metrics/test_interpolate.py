"""Cells between times by rules that know no dynamics."""

import numpy as np
import pytest
from scipy import sparse

from dynapath.metrics import clouds, interpolate

N, TIMES = 50, (0.0, 1.0, 2.0, 6.0, 12.0)
times = np.repeat(TIMES, N)
# One gene per cell: a predicted cell says where it comes from.
tagged = sparse.csr_matrix(np.diag(np.arange(1.0, len(times) + 1)))


def rng(seed=0):
    return np.random.default_rng(seed)


def origin(cells):
    return cells.indices


# --- carried cells ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "source"), [(interpolate.forward, 2), (interpolate.backward, 6)])
def test_cells_are_carried_from_their_side_each_once(rule, source):
    found = rule(tagged, times, 4.0, 40, rng())
    assert (times[origin(found)] == source).all()
    assert len(set(origin(found))) == 40


def test_no_more_cells_are_carried_than_there_are():
    assert interpolate.forward(tagged, times, 4.0, 80, rng()).shape[0] == N


@pytest.mark.parametrize(("time", "after"), [(3.0, 0.25), (9.0, 0.5), (1.5, 0.5), (5.0, 0.75)])
def test_a_mixture_follows_real_time(time, after):
    found = times[origin(interpolate.mixture(tagged, times, time, 40, rng()))]
    assert len(found) == 40
    assert (found > time).mean() == after
    assert set(found) == {max(t for t in TIMES if t < time), min(t for t in TIMES if t > time)}


def test_a_mixture_keeps_its_proportions_where_one_side_has_few_cells():
    few = np.r_[np.flatnonzero(times == 2)[:10], np.flatnonzero(times == 6)]
    found = times[few][origin(interpolate.mixture(tagged[few][:, few], times[few], 3.0, 40, rng()))]
    # Three quarters come from the ten cells of time 2, each once.
    assert (found == 2).sum() == 10
    assert (found == 6).sum() == 3


# --- moved cells -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("time", "source"), [(3.0, 2), (5.0, 6), (14.0, 12), (-1.0, 0)])
def test_cells_that_move_steadily_in_real_time_are_met_exactly(time, source):
    start, velocity = rng().normal(size=(N, 3)), np.array([1.0, -2.0, 0.5])
    pcs = np.tile(start, (len(TIMES), 1)) + times[:, None] * velocity
    found = interpolate.mean_shift(pcs, times, time, N, rng())
    order = lambda points: points[np.lexsort(points.T)]
    np.testing.assert_allclose(order(found), order(start + time * velocity))
    # The cells of the nearest time are those that moved.
    assert np.isin(np.round(found - (time - source) * velocity, 9), np.round(pcs[times == source], 9)).all()


# --- transported cells ------------------------------------------------------------------------------------------------------------


def test_partners_are_those_of_the_optimal_coupling():
    # Moved less than half of what separates them, so every cell's partner is itself.
    place = 10 * rng().permutation(N).astype(float)
    pcs = np.concatenate([place + 3 * k for k in range(len(TIMES))])[:, None]
    found = interpolate.ot_interpolation(tagged, pcs, times, 3.0, N, rng()).toarray()
    before, after = (np.flatnonzero(times == t) for t in (2, 6))
    for cell in found:
        taken = np.flatnonzero(cell)
        assert np.isin(taken, np.r_[before, after]).all()
        assert len({index % N for index in taken}) <= 1


def test_each_gene_is_on_average_on_its_way_in_real_time():
    n_genes = 4000
    low, high = np.full((2, n_genes), 10.0), np.full((2, n_genes), 30.0)
    counts, when = sparse.csr_matrix(np.vstack([low, high])), np.array([2.0, 2.0, 6.0, 6.0])
    found = interpolate.ot_interpolation(counts, np.zeros((4, 1)), when, 3.0, 5, rng())
    # A coin of 1/4 per gene: its mean over 4,000 genes has a standard error of 20 * .43 / 63.
    np.testing.assert_allclose(found.mean(1), 15, atol=4 * 20 * np.sqrt(3 / 16 / n_genes))


@pytest.mark.parametrize("dispersion", [0.01, 2.0])
def test_between_two_parts_of_a_snapshot_lies_that_snapshot_whatever_the_noise_of_counts(dispersion):
    n, n_genes = 300, 60
    mean = rng(1).gamma(1, 2, n_genes)
    counts = sparse.csr_matrix(rng(2).poisson(mean * rng(3).gamma(1 / dispersion, dispersion, (3 * n, n_genes))))
    space = clouds.PrincipalSpace.fit(counts, 10)
    when, ends = np.repeat([0.0, 1.0], n), counts[: 2 * n]
    found = interpolate.ot_interpolation(ends, space.project(ends), when, 0.5, n, rng())
    truth = counts[2 * n :]
    energy = clouds.energy_distance(space.project(found), space.project(truth))
    energies = [clouds.energy_distance(space.project(ends[when == t]), space.project(truth)) for t in (0, 1)]
    # Averages of counts would halve the variance. The medians of 60 ratios of variances of 300 cells scatter by about .02.
    assert clouds.variance_ratio(found, truth) == pytest.approx(1, abs=0.1)
    assert energy < max(energies) + 0.05
    zeros = [clouds.zero_error(cells, truth) for cells in (ends[when == 0], ends[when == 1])]
    assert clouds.zero_error(found, truth) < max(zeros) + 0.01


def test_pairs_in_blocks_are_as_many(monkeypatch):
    monkeypatch.setattr(interpolate, "_BLOCK", 7)
    pcs = rng().normal(size=(len(times), 2))
    assert interpolate.ot_interpolation(tagged, pcs, times, 3.0, 20, rng()).shape == (20, len(times))


# --- all -------------------------------------------------------------------------------------------------------------------------


def every_rule(times, time):
    pcs = rng(5).normal(size=(len(times), 2))
    return [
        *(rule(tagged, times, time, 30, rng()) for rule in (interpolate.forward, interpolate.backward)),
        interpolate.mixture(tagged, times, time, 30, rng()),
        interpolate.ot_interpolation(tagged, pcs, times, time, 30, rng()),
        sparse.csr_matrix(interpolate.mean_shift(pcs, times, time, 30, rng())),
    ]


def test_the_unit_of_time_does_not_matter():
    for days, hours in zip(every_rule(times, 3.0), every_rule(24 * times, 72.0), strict=True):
        np.testing.assert_array_equal(days.toarray(), hours.toarray())


def test_what_needs_another_side_says_so():
    with pytest.raises(ValueError, match="no later time than 12"):
        interpolate.backward(tagged, times, 12.0, 5, rng())
    with pytest.raises(ValueError, match="no earlier time than 0"):
        interpolate.mixture(tagged, times, 0.0, 5, rng())
