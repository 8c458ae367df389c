"""The filter with process noise: against dense Gaussian algebra, and what was not measured."""

import numpy as np
import pytest
import torch

from dynapath.dynamics import linear
from dynapath.models.state_space import StateSpace


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    model = StateSpace(3, 2, 4, n_members=2, jitter=0.3, generator=generator)
    with torch.no_grad():
        model.rate.clamp_(max=-0.01)
    times = torch.tensor([[0.0, 1.0, 2.5, 3.0], [0.0, 0.4, 0.9, 0.9]], dtype=torch.float64)
    values = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    values[0, 1, 2] = values[1, 0, 0] = torch.nan
    values[1, 3] = torch.nan
    baseline = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    return model, times, values, torch.tensor([4, 3]), baseline


def dense(model, times, values, system, member, subject):
    """Mean and covariance of all measurements of a subject, through matrix exponentials."""
    A = system.rate[member, subject].diag()
    Q, W = system.noise[member, 0], model.loadings[member]
    mean, cov = linear.moments(
        A, system.drift[member, subject], system.start[member, subject], system.spread[member, 0], Q, times[subject]
    )
    V, p = values.shape[1:]
    big = torch.zeros(V * p, V * p, dtype=torch.float64)
    for i in range(V):
        for j in range(i, V):
            Phi, _ = linear.propagator(A, torch.zeros(4), times[subject, j] - times[subject, i])
            block = W @ cov[i] @ Phi.T @ W.T
            big[i * p : (i + 1) * p, j * p : (j + 1) * p] = block
            big[j * p : (j + 1) * p, i * p : (i + 1) * p] = block.T
    big += model.item_variance[member].repeat(V).diag()
    return (mean @ W.T).flatten(), big


def test_the_filter_has_the_likelihood_of_all_measurements_at_once(case):
    model, times, values, n_visits, baseline = case
    with torch.no_grad():
        system = model.system(baseline)
        found, _ = model.filter(times, values, n_visits, system)
        for member in range(2):
            for subject in range(2):
                mean, cov = dense(model, times, values, system, member, subject)
                y = values[subject].flatten()
                known = torch.isfinite(y)
                normal = torch.distributions.MultivariateNormal(mean[known], cov[known][:, known])
                torch.testing.assert_close(found[member, subject], normal.log_prob(y[known]))


def test_forecasts_are_conditional_means_and_variances(case):
    model, times, values, n_visits, baseline = case
    with torch.no_grad():
        system = model.system(baseline)
        history = values.clone()
        history[0, 3] = torch.nan
        known = torch.tensor([3, 3])
        _, belief = model.filter(times[:, :3], history[:, :3], known, system)
        mean, variance = model.read(model.carry(belief, system, times[:, 3] - times[:, 2]))
        all_mean, cov = dense(model, times, values, system, 1, 0)
        y = history[0].flatten()
        seen, ahead = torch.isfinite(y), torch.arange(12) >= 9
        gain = cov[ahead][:, seen] @ torch.linalg.inv(cov[seen][:, seen])
        torch.testing.assert_close(mean[1, 0], all_mean[ahead] + gain @ (y[seen] - all_mean[seen]))
        expected = (cov[ahead][:, ahead] - gain @ cov[seen][:, ahead]).diagonal()
        torch.testing.assert_close(variance[1, 0], expected)


def test_what_was_not_measured_says_nothing(case):
    model, times, values, n_visits, baseline = case
    system = model.system(baseline)
    log_prob, _ = model.filter(times, values, n_visits, system)
    log_prob.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    # A visit without measurements in between changes nothing: the flow composes.
    with torch.no_grad():
        more = torch.cat([times[:1, :1], times[:1, :1] + 0.3, times[:1, 1:]], 1)
        blank = torch.cat([values[:1, :1], torch.full((1, 1, 3), torch.nan), values[:1, 1:]], 1)
        with_blank, _ = model.filter(more, blank, torch.tensor([5]), model.system(baseline[:1]))
    torch.testing.assert_close(with_blank[:, 0], log_prob[:, 0].detach())


def test_a_member_without_a_covariance_gets_nan_and_the_others_what_they_had(case):
    model, times, values, n_visits, baseline = case
    with torch.no_grad():
        expected, before = model.filter(times, values, n_visits, model.system(baseline))
        model.spread_root[1] = 1e200
        found, belief = model.filter(times, values, n_visits, model.system(baseline))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    torch.testing.assert_close(belief.mean[0], before.mean[0], rtol=0, atol=0)
    assert torch.isnan(found[1]).all()
    assert torch.isnan(belief.mean[1]).all()


def test_an_ornstein_uhlenbeck_process_is_recovered():
    # 400 subjects, 6 visits, one item: rate -.5, noise variance .4, measurement variance .1.
    from dynapath._visits import Visits
    from dynapath.stats.registry.state_space import StateSpaceForecaster

    rng = np.random.default_rng(0)
    n, V = 400, 6
    times = np.cumsum(rng.uniform(0.5, 1.5, (n, V)), axis=1)
    times -= times[:, :1]
    z = np.empty((n, V))
    z[:, 0] = rng.normal(0, np.sqrt(0.4), n)
    for k in range(1, V):
        a = np.exp(-0.5 * (times[:, k] - times[:, k - 1]))
        z[:, k] = a * z[:, k - 1] + rng.normal(0, np.sqrt(0.4 * (1 - a**2)))
    x = z + rng.normal(0, np.sqrt(0.1), (n, V))
    visits = Visits(
        times,
        x[..., None],
        np.ones((n, V), bool),
        np.zeros((n, 0)),
        ("x",),
        ("gaussian",),
        tuple(map(str, range(n))),
        (),
    )
    fitted = StateSpaceForecaster().fit(visits)
    # The best forecast 2 ahead of a single visit: shrunk by .8 exp(-1), variance .5 - (.4 exp(-1))^2 / .5.
    one = Visits(
        np.zeros((1, 1)), np.ones((1, 1, 1)), np.ones((1, 1), bool), np.zeros((1, 0)), ("x",), ("gaussian",), ("a",), ()
    )
    mean, sd = fitted.predict(one, np.array([[2.0]]))
    assert abs(mean[0, 0, 0] - 0.8 * np.exp(-1)) < 0.06
    assert abs(sd[0, 0, 0] - np.sqrt(0.5 - (0.4 * np.exp(-1)) ** 2 / 0.5)) < 0.03
