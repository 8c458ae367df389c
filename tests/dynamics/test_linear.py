"""Linear dynamics against solvers and integrals that know nothing of matrix exponentials."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec
from scipy.linalg import expm
from torch.autograd import gradcheck
from torchdiffeq import odeint

from dynapath.dynamics import flow, linear, moments, noise_covariance, propagator, velocity

EXACT = {"rtol": 1e-12, "atol": 1e-12}
SOLVED = {"rtol": 1e-8, "atol": 1e-8}  # the solver's own tolerance is 1e-10 a step

SYSTEMS = {
    "spiral": [[0.3, -1.2], [1.2, 0.1]],
    "saddle": [[1.0, 0.4], [0.2, -2.0]],
    "singular": [[1.0, 2.0], [2.0, 4.0]],
    "defective": [[-0.5, 1.0], [0.0, -0.5]],
    "nilpotent": [[0.0, 1.0], [0.0, 0.0]],
    "still": [[0.0, 0.0], [0.0, 0.0]],
}
systems = pytest.mark.parametrize("A", [torch.tensor(A).double() for A in SYSTEMS.values()], ids=list(SYSTEMS))
times = pytest.mark.parametrize("dt", [0.7, -0.9, 0.0])


@pytest.fixture
def z():
    return torch.tensor([0.8, -1.5], dtype=torch.float64)


@pytest.fixture
def b():
    return torch.tensor([0.4, -2.0], dtype=torch.float64)


@pytest.fixture
def Q():
    return torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)


def at(dt):
    return torch.tensor(dt, dtype=torch.float64)


def solve(field, start, dt):
    grid = torch.tensor([0.0, dt], dtype=torch.float64)
    return odeint(field, start, grid, method="dopri5", rtol=1e-10, atol=1e-12)[-1]


# --- flow --------------------------------------------------------------------------------------------------------


@systems
@pytest.mark.parametrize("dt", [0.7, -0.9])
def test_flow_agrees_with_an_independent_solver(A, b, z, dt):
    reached = solve(lambda _, state: A @ state + b, z, dt)
    torch.testing.assert_close(flow(z, A, b, at(dt)), reached, **SOLVED)


@systems
@times
def test_flow_composes_and_reverses(A, b, z, dt):
    there = flow(z, A, b, at(dt))
    torch.testing.assert_close(flow(flow(z, A, b, at(dt / 3)), A, b, at(2 * dt / 3)), there, **EXACT)
    torch.testing.assert_close(flow(there, A, b, at(-dt)), z, **EXACT)


def test_without_rates_the_flow_is_a_straight_line(b, z):
    torch.testing.assert_close(flow(z, torch.zeros(2, 2).double(), b, at(3.0)), z + 3 * b, **EXACT)


def test_small_rates_tend_to_the_straight_line(b, z):
    A = torch.tensor(SYSTEMS["saddle"]).double()
    for size in (1e-3, 1e-6, 1e-9):
        # The first neglected term is dt A z + dt^2/2 A b, all of order `size`.
        torch.testing.assert_close(flow(z, size * A, b, at(1.0)), z + b, rtol=0, atol=10 * size)


def test_a_defective_system_has_its_textbook_solution():
    # exp([[a, 1], [0, a]] t) = e^{at} [[1, t], [0, 1]]
    a, t = -0.5, 1.3
    Phi, c = propagator(torch.tensor([[a, 1.0], [0.0, a]]).double(), torch.zeros(2).double(), at(t))
    torch.testing.assert_close(Phi, np.exp(a * t) * torch.tensor([[1.0, t], [0.0, 1.0]], dtype=torch.float64), **EXACT)
    assert not c.any()


@systems
def test_nothing_moves_in_no_time(A, b, z):
    torch.testing.assert_close(flow(z, A, b, at(0.0)), z, **EXACT)


@systems
def test_velocity_is_the_derivative_of_the_flow(A, b, z):
    rate = torch.autograd.functional.jacobian(lambda dt: flow(z, A, b, dt), at(0.0))
    torch.testing.assert_close(rate, velocity(z, A, b), **EXACT)


@systems
def test_flow_gradients(A, b, z):
    inputs = tuple(x.clone().requires_grad_() for x in (z, A, b, at(0.6)))
    assert gradcheck(flow, inputs)


def test_flow_keeps_the_precision_of_the_states(b, z):
    A = torch.tensor(SYSTEMS["spiral"])
    single = flow(z.float(), A, b.float(), torch.tensor(0.7))
    assert single.dtype == torch.float32
    # Only what goes in and comes out is rounded to 24 bits, not the exponential.
    torch.testing.assert_close(single.double(), flow(z, A.double(), b, at(0.7)), rtol=1e-6, atol=1e-6)


def test_every_row_of_a_batch_is_its_own_problem(b):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(5, 3, 3, generator=generator).double()
    b, z = torch.randn(5, 3, generator=generator).double(), torch.randn(5, 3, generator=generator).double()
    dt = torch.linspace(-1, 1, 5).double()
    together = flow(z, A, b, dt)
    for i in range(5):
        torch.testing.assert_close(together[i], flow(z[i], A[i], b[i], dt[i]), **EXACT)
        system = expm(np.block([[A[i].numpy(), b[i].numpy()[:, None]], [np.zeros((1, 4))]]) * dt[i].item())
        np.testing.assert_allclose(together[i], system[:3, :3] @ z[i].numpy() + system[:3, 3], rtol=1e-10)


# --- covariance --------------------------------------------------------------------------------------------------


@systems
@pytest.mark.parametrize("dt", [0.0, 0.4, 2.0])
def test_noise_covariance_is_the_integral_that_defines_it(A, Q, dt):
    def integrand(s):
        Phi = expm(A.numpy() * s)
        return Phi @ Q.numpy() @ Phi.T

    integral, _ = quad_vec(integrand, 0, dt, epsabs=1e-11, epsrel=1e-11)
    np.testing.assert_allclose(noise_covariance(A, Q, at(dt)), integral, rtol=1e-8, atol=1e-9)


@systems
def test_moments_solve_the_mean_and_lyapunov_equations(A, b, z, Q):
    S0 = torch.tensor([[0.5, -0.2], [-0.2, 0.4]], dtype=torch.float64)

    def field(_, state):
        mean, S = state
        return A @ mean + b, A @ S + S @ A.mT + Q

    grid = torch.tensor([0.0, 0.3, 1.1], dtype=torch.float64)
    solved = odeint(field, (z, S0), grid, method="dopri5", rtol=1e-10, atol=1e-12)
    mean, cov = moments(A, b, z, S0, Q, grid)
    torch.testing.assert_close(mean, solved[0], **SOLVED)
    torch.testing.assert_close(cov, solved[1], **SOLVED)


def test_noise_alone_grows_with_time(Q):
    torch.testing.assert_close(noise_covariance(torch.zeros(2, 2).double(), Q, at(2.5)), 2.5 * Q, **EXACT)


def test_a_strong_pull_leaves_the_stationary_covariance():
    # A = -a I: the integral is Q (1 - exp(-2 a t)) / 2a.
    Q = torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double()
    for a in (30.0, 1e4):
        torch.testing.assert_close(
            noise_covariance(-a * torch.eye(2).double(), Q, at(1.0)), Q / (2 * a), rtol=1e-10, atol=0
        )


def closed_form(rates, V, Q, dt):
    """In the coordinates of the eigenvectors each entry decays at the sum of two rates."""
    sums = rates[:, None] + rates
    inside = np.linalg.solve(V, np.linalg.solve(V, Q).T).T
    safe = np.where(sums == 0, 1.0, sums)
    return V @ (inside * np.where(sums == 0, dt, np.expm1(safe * dt) / safe)) @ V.T


def test_noise_under_fast_decay_is_the_closed_form():
    # Halving and doubling m times loses up to 2^m roundings: 1e4 is 2^13.3.
    angle = 0.7
    V = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for fast in (-40.0, -60.0, -800.0, -1e4, -1e6, -1e8):
        for slow in (-0.1, 0.0, 2.0):
            rates, Q = np.array([fast, slow]), np.array([[1.0, 0.2], [0.2, 0.5]])
            P = noise_covariance(torch.tensor(V * rates @ V.T), torch.tensor(Q), at(1.0)).numpy()
            exact = closed_form(rates, V, Q, 1.0)
            np.testing.assert_allclose(P, exact, rtol=0, atol=1e-15 * max(-fast, 100.0) * exact.max())
            if fast >= -1e4:
                assert np.linalg.eigvalsh(P)[0] == pytest.approx(np.linalg.eigvalsh(exact)[0], rel=1e-6)


def draw_system(rng, kind):
    """A of 1 to 4 dimensions with a norm up to 20, and some Q, without full rank in every third case."""
    d = int(rng.integers(2 if kind == "defective" else 1, 5))
    A = rng.standard_normal((d, d))
    if kind == "stable":
        A = A - (np.linalg.eigvals(A).real.max() + rng.exponential()) * np.eye(d)
    elif kind == "unstable":
        A = A - (np.linalg.eigvals(A).real.max() - rng.uniform(0.5, 2)) * np.eye(d)
    elif kind == "singular":
        A[:, 0] = A[:, 1:] @ rng.standard_normal(d - 1)
    else:  # one block of Jordan, seen from another basis
        V = np.linalg.qr(rng.standard_normal((d, d)))[0]
        A = V @ (-rng.uniform(0, 2) * np.eye(d) + np.diag(rng.uniform(0.5, 2, d - 1), 1)) @ V.T
    root = rng.standard_normal((d, int(rng.integers(1, d + 1))))
    return rng.uniform(0.1, 20) * A / np.linalg.norm(A, 2) if A.any() else A, root @ root.T


def quadrature(A, Q, dt):
    """Gauss and Legendre's rule of ten nodes on panels in which A t is below 1."""
    n = int(np.ceil(np.linalg.norm(A, 2) * dt)) + 1
    node, weight = np.polynomial.legendre.leggauss(10)
    s = (np.arange(n)[:, None] + (1 + node) / 2).ravel() * dt / n
    Phi = expm(A * s[:, None, None])
    return np.einsum("s,sij,jk,slk->il", np.tile(weight, n) * dt / (2 * n), Phi, Q, Phi)


@pytest.mark.parametrize("kind", ["stable", "unstable", "singular", "defective"])
def test_noise_covariance_of_random_systems_is_the_integral(kind):
    rng = np.random.default_rng(3)
    for _ in range(40):
        A, Q = draw_system(rng, kind)
        dt = rng.uniform(0.05, 1.0)
        P = noise_covariance(torch.tensor(A), torch.tensor(Q), at(dt)).numpy()
        expected = quadrature(A, Q, dt)
        np.testing.assert_allclose(P, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
        assert np.linalg.eigvalsh(P)[0] >= -1e-13 * np.abs(expected).max()


def test_a_system_is_the_same_beside_a_faster_or_a_diverged_one(Q):
    A = torch.tensor([SYSTEMS["spiral"], [[-1e4, 3.0], [0.0, -1.0]], [[1e300, 0.0], [0.0, 1.0]]]).double()
    alone = noise_covariance(A[0], Q, at(0.8))
    together = noise_covariance(A, Q, at(0.8))
    torch.testing.assert_close(together[0], alone, **EXACT)
    torch.testing.assert_close(together[1], noise_covariance(A[1], Q, at(0.8)), **EXACT)
    assert not torch.isfinite(together[2]).all()


def test_noise_gradients_under_fast_decay(Q):
    A = torch.tensor([[[-45.0, 10.0], [3.0, -0.2]], [[0.1, 0.2], [0.0, 0.1]]]).double().requires_grad_()
    assert gradcheck(lambda A, Q, dt: noise_covariance(A, Q, dt), (A, Q.requires_grad_(), at(0.9).requires_grad_()))


@systems
def test_moments_gradients(A, b, z, Q):
    S0 = 0.2 * torch.eye(2).double()
    grid = torch.tensor([0.0, 0.5], dtype=torch.float64)
    inputs = tuple(x.clone().requires_grad_() for x in (A, b, z, S0, Q))
    assert gradcheck(lambda *given: moments(*given, grid), inputs)


@systems
def test_covariances_are_symmetric_and_positive(A, b, z, Q):
    start = 1e-3 * torch.eye(2).double()
    _, cov = moments(A, b, z, start, Q, torch.linspace(0, 2, 9).double())
    torch.testing.assert_close(cov, cov.mT, **EXACT)
    assert (torch.linalg.eigvalsh(cov) > 0).all()


def test_a_covariance_back_in_time_raises_and_names_the_time(b, z, Q):
    A = torch.tensor(SYSTEMS["spiral"]).double()
    with pytest.raises(ValueError, match=r"dt = -0\.25.*`flow`"):
        noise_covariance(A, Q, torch.tensor([0.5, -0.25]).double())
    with pytest.raises(ValueError, match=r"dt = -1"):
        moments(A, b, z, Q, Q, torch.tensor([-1.0, 0.0]).double())


def test_moments_of_groups_and_copies_broadcast(Q):
    generator = torch.Generator().manual_seed(1)
    A, b = torch.randn(4, 3, 2, 2, generator=generator).double(), torch.randn(4, 3, 2, generator=generator).double()
    m, grid = torch.randn(4, 3, 2, generator=generator).double(), torch.tensor([0.0, 0.2, 1.0]).double()
    cov0 = Q.expand(4, 3, 2, 2)
    mean, cov = moments(A, b, m, cov0, Q.expand(4, 3, 2, 2), grid)
    assert mean.shape == (4, 3, 3, 2)
    assert cov.shape == (4, 3, 3, 2, 2)
    alone = moments(A[2, 1], b[2, 1], m[2, 1], Q, Q, grid)
    torch.testing.assert_close((mean[2, 1], cov[2, 1]), alone, **EXACT)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_no_step_is_too_short_for_moments(unit):
    # Steps of 2e-7, of one and the same length but for rounding, then one of nearly the same, and a long one.
    times = torch.tensor([0.0, 2e-7, 4e-7, 6.00001e-7, 1.0]).double()
    rate, Q = -1e6 / unit, torch.ones(1, 1).double() / unit
    mean, cov = moments(at([[rate]]), torch.zeros(1).double(), torch.ones(1).double(), Q * 0, Q, times * unit)
    torch.testing.assert_close(mean[:4, 0], torch.exp(-1e6 * times)[:4], rtol=1e-12, atol=0)
    torch.testing.assert_close(cov[:, 0, 0], -torch.expm1(-2e6 * times) / 2e6, rtol=1e-9, atol=0)


def test_steps_that_differ_by_rounding_cost_one_exponential(b, z, Q, monkeypatch):
    lengths = []
    whole = linear._transition
    monkeypatch.setattr(linear, "_transition", lambda A, b, Q, dt: lengths.append(len(dt)) or whole(A, b, Q, dt))
    A = torch.tensor(SYSTEMS["spiral"]).double()
    for times in (torch.arange(11).double() / 10, torch.arange(11) / 10, 2020 + torch.arange(5).double() / 4):
        mean, _ = moments(A, b, z, Q, Q, times - times[0])
        for t, reached in zip(times - times[0], mean, strict=True):
            torch.testing.assert_close(reached, flow(z, A, b, t.double()), rtol=1e-6, atol=1e-6)
    assert lengths == [1, 1, 1]


def test_moments_at_one_time_twice_are_the_same(b, z, Q):
    A = torch.tensor(SYSTEMS["spiral"]).double()
    mean, cov = moments(A, b, z, Q, Q, torch.tensor([0.5, 0.0, 0.5, 0.0]).double())
    assert torch.equal(mean[0], mean[2])
    assert torch.equal(cov[0], cov[2])
    assert torch.equal(mean[1], z)
    assert torch.equal(cov[3], Q)


def test_moments_are_those_of_simulated_paths(Q):
    A, b = torch.tensor(SYSTEMS["spiral"]).double(), torch.tensor([0.5, -0.3]).double()
    n, steps, t = 20_000, 200, 1.0
    generator = torch.Generator().manual_seed(0)
    m, S0 = torch.tensor([1.0, -1.0]).double(), 0.3 * torch.eye(2).double()
    paths = m + torch.randn(n, 2, generator=generator).double() @ torch.linalg.cholesky(S0).mT
    for _ in range(steps):  # Euler and Maruyama
        noise = torch.randn(n, 2, generator=generator).double() @ torch.linalg.cholesky(Q).mT
        paths = paths + (paths @ A.mT + b) * t / steps + noise * (t / steps) ** 0.5
    mean, cov = moments(A, b, m, S0, Q, at([t]))
    # Sampling error of a mean sqrt(S/n) < .008, of a variance S sqrt(2/n) < .012; Euler's bias t/(2 steps) |A^2 z| < .01.
    torch.testing.assert_close(paths.mean(0), mean[0], rtol=0, atol=4 * 0.008 + 0.01)
    torch.testing.assert_close(torch.cov(paths.mT), cov[0], rtol=0, atol=4 * 0.012 + 0.01)
