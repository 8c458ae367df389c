"""Closed forms of individual systems, and flows without one."""

import pytest
import torch
from torch.autograd import gradcheck
from torchdiffeq import odeint

from dynapath.dynamics import linear
from dynapath.dynamics.diagonal import diagonal_cov, diagonal_mean
from dynapath.dynamics.linear2 import propagator2
from dynapath.dynamics.named import dynamics_by_name
from dynapath.dynamics.nonlinear import LearnedField, LotkaVolterra
from dynapath.dynamics.systems import LinearSystem

FORMS = [
    LinearSystem(d, form, offset)
    for d in (2, 3)
    for form in ("drift", "diagonal", "offdiagonal", "full")
    for offset in (False, True)
]
SPECIAL = {
    "singular": [[0.4, 0.8], [0.2, 0.4]],
    "defective": [[-0.3, 1.0], [0.0, -0.3]],
    "zero": [[0.0, 0.0], [0.0, 0.0]],
    "nilpotent": [[0.0, 1.0], [0.0, 0.0]],
    "rotation": [[0.0, -1.0], [1.0, 0.0]],
    "complex": [[-0.2, 2.0], [-3.0, 0.1]],
    "stiff": [[-20.0, 3.0], [0.0, -0.01]],
    "equal": [[0.7, 0.0], [0.0, 0.7]],
}


def drawn(system, n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)
    return draw(n), draw(n, system.n_latent), 0.7 * draw(n, system.n_params)


def exact(system, dt, z, theta):
    """Integrated at tight tolerance, each row over its own time."""
    step = dt.unsqueeze(-1)
    field = lambda s, x: step * system.vector_field(s, x, theta)
    return odeint(field, z, torch.tensor([0.0, 1.0], dtype=z.dtype), rtol=1e-11, atol=1e-12)[-1]


@pytest.mark.parametrize("system", FORMS, ids=str)
def test_the_flow_agrees_with_an_independent_solver(system):
    dt, z, theta = drawn(system)
    torch.testing.assert_close(system.flow(dt, z, theta), exact(system, dt, z, theta), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("system", FORMS, ids=str)
def test_the_flow_composes_and_reverses(system):
    dt, z, theta = drawn(system)
    there = system.flow(dt, z, theta)
    torch.testing.assert_close(system.flow(0.3 * dt, system.flow(0.7 * dt, z, theta), theta), there)
    torch.testing.assert_close(system.flow(-dt, there, theta), z)


@pytest.mark.parametrize("system", FORMS, ids=str)
def test_the_flow_has_the_gradients_of_finite_differences(system):
    dt, z, theta = (x.requires_grad_() for x in drawn(system, n=3))
    assert gradcheck(system.flow, (dt, z, theta))


@pytest.mark.parametrize("form", ["diagonal", "offdiagonal", "full"])
def test_without_rates_the_flow_is_a_drift(form):
    system = LinearSystem(2, form, offset=True)
    dt, z, theta = drawn(system)
    theta[:, :-2] = 0
    torch.testing.assert_close(system.flow(dt, z, theta), z + theta[:, -2:] * dt[:, None])


def test_parameters_stand_where_their_names_say():
    A, b = LinearSystem(2, "offdiagonal", offset=True).unpack(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert LinearSystem(2, "offdiagonal", offset=True).param_names == ("A12", "A21", "b1", "b2")
    torch.testing.assert_close(A, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    torch.testing.assert_close(b, torch.tensor([3.0, 4.0]))
    assert LinearSystem(2, "drift").param_names == ("b1", "b2")


@pytest.mark.parametrize("A", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("t", [0.0, 1e-9, 0.5, -0.5, 2.0])
def test_the_shortcut_for_two_dimensions_is_the_matrix_exponential(A, t):
    A, b, t = (
        torch.tensor(A, dtype=torch.float64),
        torch.tensor([0.3, -0.7], dtype=torch.float64),
        torch.tensor(t).double(),
    )
    Phi, c = propagator2(A, b, t)
    Phi0, c0 = linear.propagator(A, b, t)
    torch.testing.assert_close(Phi, Phi0, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(c, c0, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("A", SPECIAL.values(), ids=SPECIAL)
def test_the_shortcut_has_the_gradients_of_finite_differences(A):
    A = torch.tensor(A, dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    t = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda A, b, t: propagator2(A, b, t), (A, b, t), atol=1e-6)


def test_gradients_in_float32_hold_near_a_singular_matrix():
    # det A from 1e-8 to 1, both sides of the guard; relative to the size of the gradient in float64.
    generator = torch.Generator().manual_seed(0)
    base = torch.tensor([[0.4, 0.8], [0.2, 0.4]], dtype=torch.float64)
    for distance in (0.0, 1e-8, 1e-5, 1e-3, 0.05, 0.11, 0.3, 1.0):
        A = base + distance * torch.randn(2, 2, generator=generator, dtype=torch.float64)
        gradients = []
        for dtype in (torch.float64, torch.float32):
            a = A.to(dtype, copy=True).requires_grad_()
            b = torch.tensor([0.3, -0.7], dtype=dtype, requires_grad=True)
            Phi, c = propagator2(a, b, torch.tensor(1.0, dtype=dtype))
            (Phi.sum() + c.sum()).backward()
            gradients.append(torch.cat([a.grad.flatten(), b.grad]).double())
        error = (gradients[1] - gradients[0]).abs().max() / gradients[0].abs().max()
        assert error < 1e-5, f"distance {distance}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [40.0, 200.0, 2000.0])
def test_fast_decay_in_two_dimensions_is_decay(rate, dtype):
    # exp(s) is tiny and cosh(sqrt(w)) huge: beyond a difference of rates of 178 the latter overflows in single precision.
    A = torch.tensor([[-0.8 * rate, 0.4 * rate], [0.4 * rate, -0.2 * rate - 0.1]], dtype=dtype)
    Phi, c = propagator2(A, torch.ones(2, dtype=dtype), torch.tensor(1.0, dtype=dtype))
    exact, exact_c = linear.propagator(A.double(), torch.ones(2).double(), torch.tensor(1.0).double())
    tolerance = 1e-6 * rate if dtype == torch.float32 else 1e-14 * rate
    torch.testing.assert_close(Phi.double(), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(c.double(), exact_c, rtol=0, atol=tolerance)
    A.requires_grad_()
    propagator2(A, None, torch.tensor(1.0, dtype=dtype))[0].sum().backward()
    assert torch.isfinite(A.grad).all()


def test_diagonal_moments_are_those_of_van_loan():
    generator = torch.Generator().manual_seed(0)
    rate = torch.tensor([-0.8, 0.0, 1e-6, 0.2], dtype=torch.float64)
    drift, mean = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    root, start = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    noise, cov = root @ root.T, start @ start.T
    times = torch.tensor([0.0, 0.01, 1.3, 6.0], dtype=torch.float64)
    means, covs = linear.moments(rate.diag(), drift, mean, cov, noise, times)
    torch.testing.assert_close(diagonal_mean(mean, rate, drift, times), means)
    torch.testing.assert_close(diagonal_cov(cov, rate, noise, times), covs)


def test_diagonal_moments_have_the_gradients_of_finite_differences_at_rate_zero():
    rate = torch.tensor([0.0, 1e-5, -0.5], dtype=torch.float64, requires_grad=True)
    drift, mean = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    dt = torch.tensor(1.5, dtype=torch.float64)
    noise = torch.eye(3, dtype=torch.float64)
    assert gradcheck(lambda r: (diagonal_mean(mean, r, drift, dt), diagonal_cov(noise, r, noise, dt)), (rate,))


@pytest.mark.parametrize("free", [2, 4])
def test_lotka_volterra_in_log_state_keeps_its_invariant(free):
    # g u1 - d log u1 + b u2 - a log u2 does not change.
    system = LotkaVolterra(free)
    z = torch.log(torch.tensor([[2.0, 2.0], [0.5, 1.0]], dtype=torch.float64))
    theta = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    a, d = theta.T
    if free == 4:
        theta = torch.stack([a, torch.ones(2).double(), torch.ones(2).double(), d], -1)
    invariant = lambda z: z[:, 0].exp() - d * z[:, 0] + z[:, 1].exp() - a * z[:, 1]
    later = system.flow(torch.tensor([3.0, 2.0], dtype=torch.float64), z, theta)
    torch.testing.assert_close(invariant(later), invariant(z), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(later, exact(system, torch.tensor([3.0, 2.0]).double(), z, theta), rtol=1e-3, atol=1e-3)


def test_lotka_volterra_at_rest_stays_there():
    z = torch.log(torch.tensor([[0.5, 1.2]]))  # u1 = d, u2 = a
    torch.testing.assert_close(LotkaVolterra().flow(torch.tensor([4.0]), z, torch.tensor([[1.2, 0.5]])), z)


def test_each_member_of_a_learned_field_moves_by_itself():
    torch.manual_seed(0)
    both = LearnedField(2, 2, n_members=2)
    z, theta, dt = torch.randn(2, 4, 2), torch.randn(2, 4, 2), torch.rand(4)
    together = both.flow(dt, z, theta)
    alone = LearnedField(2, 2)
    for name, value in both.named_parameters():
        getattr(alone, name).data = value.data[1:]
    torch.testing.assert_close(alone.flow(dt, z[1:], theta[1:]), together[1:])


def test_unknown_dynamics_are_named_with_those_there_are():
    with pytest.raises(ValueError, match="'cubic'.*|.*'learned'.*'cubic'"):
        dynamics_by_name("cubic", 2)
    with pytest.raises(ValueError, match="n_latent is 3"):
        dynamics_by_name("lotka_volterra", 3)
    with pytest.raises(ValueError, match="it is 'skew'"):
        LinearSystem(2, "skew")
