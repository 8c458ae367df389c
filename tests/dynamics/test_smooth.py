"""One trajectory from all visits: against weighted least squares, and the published estimator re-derived in numpy."""

import mpmath
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from dynapath.dynamics.nonlinear import LearnedField, LotkaVolterra
from dynapath.dynamics.smooth import equal, gls, inverse_variance, linearised, pool
from dynapath.dynamics.systems import LinearSystem

TIMES = torch.tensor([0.0, 0.7, 1.5, 4.0, 4.2], dtype=torch.float64)


def subject(system, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = 0.4 * torch.randn(system.n_params, generator=generator, dtype=torch.float64)
    mean = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    precision = 0.5 + torch.rand(5, 2, generator=generator, dtype=torch.float64)
    return theta, mean, precision


def weighted_least_squares(system, theta, mean, precision):
    """By numpy on the stacked visits: sqrt(P) Phi x0 = sqrt(P) (mu - c), the offset taken off."""
    Phi, c = (x.numpy() for x in system.propagator(TIMES, theta))
    root = np.sqrt(precision.numpy())
    design = (root[:, :, None] * Phi).reshape(-1, 2)
    x0, *_ = np.linalg.lstsq(design, (root * (mean.numpy() - c)).ravel(), rcond=None)
    return x0, np.linalg.inv(design.T @ design), Phi @ x0 + c


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("form", ["diagonal", "full", "drift"])
def test_gls_is_weighted_least_squares_with_the_offset(form, offset):
    system = LinearSystem(2, form, offset)
    theta, mean, precision = subject(system)
    x0, cov, smooth = weighted_least_squares(system, theta, mean, precision)
    Phi, c = system.propagator(TIMES, theta)
    found, found_cov = gls(Phi, c, mean, precision, ridge=0.0)
    np.testing.assert_allclose(found.numpy(), x0, rtol=1e-9)
    np.testing.assert_allclose(found_cov.numpy(), cov, rtol=1e-9)
    pooled = pool(system, "gls", TIMES, mean, precision, theta, torch.ones(5, dtype=torch.bool), ridge=0.0)
    np.testing.assert_allclose(pooled.mean.numpy(), smooth, rtol=1e-9)


def test_gls_returns_a_trajectory_that_it_was_given():
    for system in (LinearSystem(2, "full", offset=True), LotkaVolterra()):
        theta = system.from_unit(0.2 * torch.ones(system.n_params, dtype=torch.float64))
        start = torch.tensor([0.3, -0.2], dtype=torch.float64)
        path = system.flow(TIMES, start, theta)
        pooled = pool(
            system, "gls", TIMES, path, torch.ones_like(path), theta, torch.ones(5, dtype=torch.bool), ridge=0.0
        )
        # The flow of Lotka-Volterra is linearised at the first visit, where the path is the truth.
        torch.testing.assert_close(pooled.mean, path, rtol=1e-6, atol=1e-6)


def test_visits_that_are_absent_cannot_matter():
    system = LinearSystem(2, "full", offset=True)
    theta, mean, precision = subject(system)
    present = torch.tensor([True, True, True, False, False])
    for estimator in ("gls", "inverse_variance", "equal", "first"):
        results = []
        for filler in (0.0, 1e6):
            changed = torch.where(present[:, None], mean, filler)
            results.append(pool(system, estimator, TIMES, changed, precision, theta, present).mean[:3])
        torch.testing.assert_close(results[0], results[1])
        short = pool(system, estimator, TIMES[:3], mean[:3], precision[:3], theta, present[:3]).mean
        torch.testing.assert_close(results[0], short)


def published(carried):
    """The combined estimator of Hackenberg et al. (2023), with loops, as defined there."""
    V = len(carried)
    out = np.zeros_like(carried[0])
    for l in range(V):
        total = weights = 0.0
        for k in range(V):
            if k != l:
                low, high = min(k, l), max(k, l)
                w = 1 / np.var([carried[j, l] for j in range(low, high + 1)], axis=0, ddof=1)
                total, weights = total + w * carried[k, l], weights + w
        out[l] = total / weights
    return out


def test_the_published_estimator_is_the_one_written_out_in_numpy():
    system = LinearSystem(2, "full", offset=True)
    theta, mean, _ = subject(system)
    A, b = (x.numpy() for x in system.unpack(theta))
    equilibrium = np.linalg.solve(A, b)
    rates, V = np.linalg.eig(A)
    t = TIMES.numpy()
    carried = np.zeros((5, 5, 2))
    for k in range(5):
        for l in range(5):
            exponential = (V @ np.diag(np.exp(rates * (t[l] - t[k]))) @ np.linalg.inv(V)).real
            carried[k, l] = exponential @ (mean[k].numpy() + equilibrium) - equilibrium
    present = torch.ones(5, dtype=torch.bool)
    found = inverse_variance(torch.from_numpy(carried), present, floor=0.0)
    np.testing.assert_allclose(found.numpy(), published(carried), rtol=0, atol=1e-10)
    flows = system.flow(TIMES[None, :] - TIMES[:, None], mean[:, None], theta)
    np.testing.assert_allclose(
        inverse_variance(flows, present, floor=0.0).numpy(), published(carried), rtol=0, atol=1e-10
    )


def test_the_guard_keeps_equal_solutions_finite_with_finite_gradients():
    carried = torch.ones(3, 3, 2, dtype=torch.float64, requires_grad=True)
    mean = inverse_variance(carried, torch.ones(3, dtype=torch.bool))
    mean.sum().backward()
    torch.testing.assert_close(mean.detach(), torch.ones(3, 2, dtype=torch.float64))
    assert torch.isfinite(carried.grad).all()


def test_a_single_visit_is_its_own_trajectory():
    carried = torch.full((1, 1, 2), 3.0)
    for combine in (inverse_variance, equal):
        torch.testing.assert_close(combine(carried, torch.tensor([True])), torch.full((1, 2), 3.0))


def test_gls_covariance_is_the_scatter_of_repeated_visits():
    # 4,000 draws: relative standard error of a variance sqrt(2 / 4000) = 2.2 %.
    system = LinearSystem(2, "full", offset=True)
    theta, _, precision = subject(system)
    path = system.flow(TIMES, torch.tensor([1.0, -1.0], dtype=torch.float64), theta)
    generator = torch.Generator().manual_seed(1)
    seen = path + torch.randn(4000, 5, 2, generator=generator, dtype=torch.float64) / precision.sqrt()
    pooled = pool(
        system, "gls", TIMES, seen, precision.expand(4000, 5, 2), theta, torch.ones(5, dtype=torch.bool), ridge=0.0
    )
    scatter = pooled.mean.var(0)
    torch.testing.assert_close(scatter, pooled.cov[0].diagonal(dim1=-2, dim2=-1), rtol=0.1, atol=0)


def test_where_the_flow_is_not_finite_nothing_is_known_and_the_rest_is_as_it_was():
    Phi = torch.eye(2).repeat(3, 4, 1, 1)
    Phi[1] = torch.inf
    mean, precision = torch.ones(3, 4, 2), torch.ones(3, 4, 2)
    x0, cov = gls(Phi, torch.zeros(3, 4, 2), mean, precision)
    assert torch.isnan(x0[1]).all()
    assert torch.isnan(cov[1]).all()
    torch.testing.assert_close(x0[[0, 2]], torch.full((2, 2), 4 / 4.0001))


def test_what_visits_do_not_tell_is_left_to_the_ridge():
    # All visits see the sum of both coordinates, a million million times. Their difference has the variance of the ridge.
    x0, cov = gls(torch.full((4, 2, 2), 1e12), torch.zeros(4, 2), torch.full((4, 2), 2e12), torch.ones(4, 2))
    assert x0.sum().item() == pytest.approx(2.0, rel=1e-5)
    torch.testing.assert_close(cov, 0.5e4 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), rtol=1e-3, atol=0)


def exact_smooth(A, precision, ridge, digits=80):
    """Covariance of the smoothed states and what is made of each visit, with so many digits."""
    with mpmath.workdps(digits):
        steps = [mpmath.expm(mpmath.matrix(A.tolist()) * float(t)) for t in TIMES]
        weight = [mpmath.diag([float(p) for p in row]) for row in precision]
        information = ridge * mpmath.eye(2)
        for Phi, P in zip(steps, weight, strict=True):
            information += Phi.T * P * Phi
        cov0 = information**-1
        cov = [Phi * cov0 * Phi.T for Phi in steps]
        gain = [[Phi * cov0 * other.T * P for other, P in zip(steps, weight, strict=True)] for Phi in steps]
        as_array = lambda matrix: np.array(matrix.tolist(), dtype=float)
        return np.array([as_array(c) for c in cov]), np.array([[as_array(g) for g in row] for row in gain])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reach", [3, 10, 13, 20, 28])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_smoother_holds_for_fast_growth_and_decay_in_either_precision(dtype, reach, sign):
    # Coupled rates, so that no coordinate is the fast one; the last visit is at 4.2.
    A = sign * reach / 4.2 * np.array([[0.8, 0.5], [0.3, 0.1]])
    system = LinearSystem(2, "full")
    _, mean, precision = (x.to(dtype) for x in subject(system))
    theta, times = torch.tensor(A, dtype=dtype).flatten(), TIMES.to(dtype)
    given = theta.double().reshape(2, 2).numpy()  # as rounded
    smooth = pool(system, "gls", times, mean, precision, theta, torch.ones(5, dtype=torch.bool))
    assert smooth.mean.dtype == smooth.cov.dtype == dtype
    cov, gain = exact_smooth(given, precision.double(), 1e-4)
    expected = np.einsum("klij,lj->ki", gain, mean.double().numpy())
    size = np.abs(cov).max((1, 2), keepdims=True)
    # The flow itself is known to exp(reach) roundings.
    rtol = 1e-5 if dtype == torch.float32 else max(1e-9, 1e-15 * np.exp(reach))
    np.testing.assert_allclose(
        smooth.cov.double().numpy() / size, cov / size, rtol=0, atol=max(rtol, 1e-15 * np.exp(reach))
    )
    np.testing.assert_allclose(
        smooth.mean.double().numpy(), expected, rtol=0, atol=10 * max(rtol, 1e-15 * np.exp(reach))
    )


def test_smoothed_states_have_gradients_under_fast_growth():
    system = LinearSystem(2, "full")
    _, mean, precision = subject(system)
    theta = torch.tensor([2.5, 0.5, 0.3, -1.0], dtype=torch.float64)
    present = torch.tensor([True, True, False, True, True])
    inputs = tuple(x.requires_grad_() for x in (mean, precision, theta))
    assert gradcheck(lambda m, p, th: tuple(pool(system, "gls", TIMES, m, p, th, present)), inputs, eps=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nonlinear_flows_are_linearised_by_their_derivative(dtype):
    system = LotkaVolterra()
    theta, around = torch.tensor([1.1, 0.7], dtype=dtype), torch.tensor([0.3, -0.2], dtype=dtype)
    times = TIMES.to(dtype)
    Phi, c = linearised(system, times, theta, around)
    whole = torch.func.jacrev(lambda z: system.flow(times.double(), z, theta.double()))(around.double())
    torch.testing.assert_close(Phi, whole, rtol=1e-10, atol=1e-10)
    reached = system.flow(times.double(), around.double(), theta.double())
    torch.testing.assert_close((Phi @ around.double().unsqueeze(-1)).squeeze(-1) + c, reached, rtol=1e-10, atol=1e-10)


def test_a_learned_field_is_linearised_in_the_precision_of_its_weights():
    torch.manual_seed(0)
    field = LearnedField(2, 2)
    around, theta = torch.randn(1, 3, 1, 2), torch.randn(1, 3, 1, 2)
    Phi, c = linearised(field, TIMES.float(), theta, around)
    assert Phi.dtype == torch.float32
    reached = field.flow(TIMES.float(), around.expand(1, 3, 5, 2), theta)
    torch.testing.assert_close((Phi @ around.unsqueeze(-1)).squeeze(-1) + c, reached, rtol=1e-4, atol=1e-4)
    Phi.sum().backward()
    assert field.w1.grad.abs().sum() > 0
