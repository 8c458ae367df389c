import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.func import jacfwd, vmap
from torchdiffeq import odeint

import dynapath as dp

A = torch.tensor([[-1.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
b = torch.tensor([0.3, -0.2], dtype=torch.float64)
u0 = torch.tensor([2.0, 1.0], dtype=torch.float64)
times = torch.linspace(0, 1, 11, dtype=torch.float64)


def pendulum(t, u):
    return torch.stack([u[..., 1], -torch.sin(u[..., 0]) + 0.1 * torch.cos(t.squeeze(-1) if t.ndim else t)], -1)


def test_linear_systems_agree_with_an_adaptive_solver():
    expected = odeint(lambda t, u: A @ u + b, u0, times, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(dp.dynamics.solve((A, b), u0, times), expected, rtol=1e-9, atol=1e-9)
    expected = odeint(lambda t, u: A @ u, u0, times, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(dp.dynamics.solve(A, u0, times), expected, rtol=1e-9, atol=1e-9)


def test_a_function_agrees_with_the_exact_solution_and_with_an_adaptive_solver():
    exact = dp.dynamics.solve((A, b), u0, times)
    torch.testing.assert_close(dp.dynamics.solve(lambda t, u: A @ u + b, u0, times), exact, rtol=1e-10, atol=1e-10)
    adaptive = dp.dynamics.solve(pendulum, u0, times, method="dopri5", rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dp.dynamics.solve(pendulum, u0, times), adaptive, rtol=1e-8, atol=1e-8)


def test_the_error_of_steps_falls_with_their_fifth_power():
    # du/dt = cos(t) u has the solution exp(sin t)
    last, start = torch.tensor([5.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    n = np.array([30, 60, 120])
    found = [float(dp.dynamics.solve(lambda t, u: torch.cos(t) * u, start, last, n_steps=m)[0, 0]) for m in n.tolist()]
    error = np.abs(np.array(found) - np.exp(np.sin(5.0)))
    order = -np.polyfit(np.log(n), np.log(error), 1)[0]
    assert 4.7 < order < 5.5


def test_a_linear_system_runs_backwards_and_starts_at_any_time():
    there = dp.dynamics.solve((A, b), u0, torch.tensor([2.0], dtype=torch.float64))[0]
    back = dp.dynamics.solve((A, b), there, torch.tensor([0.0], dtype=torch.float64), t0=2.0)[0]
    torch.testing.assert_close(back, u0)


def test_every_row_can_have_times_of_its_own():
    own = torch.stack([times, 2 * times])
    for system in (A, (A, b), pendulum):
        rows = dp.dynamics.solve(system, u0.expand(2, 2), own)
        for i in range(2):
            torch.testing.assert_close(rows[i], dp.dynamics.solve(system, u0, own[i]), rtol=1e-9, atol=1e-9)


def test_gradients_pass_through_exact_and_stepped_solutions():
    few = times[::5]
    a, start = A.clone().requires_grad_(), u0.clone().requires_grad_()
    assert gradcheck(lambda a, u: dp.dynamics.solve(a, u, few), (a, start))
    assert gradcheck(lambda a, u: dp.dynamics.solve(lambda t, x: torch.tanh(a @ x), u, few, n_steps=3), (a, start))
    forward = vmap(jacfwd(lambda a: dp.dynamics.solve(a, u0, few)))(A.expand(2, 2, 2))
    torch.testing.assert_close(
        forward[0], torch.autograd.functional.jacobian(lambda a: dp.dynamics.solve(a, u0, few), A)
    )


METHODS = [
    "dopri5",
    "dopri8",
    "bosh3",
    "fehlberg2",
    "adaptive_heun",
    "rk4",
    "euler",
    "midpoint",
    "implicit_adams",
    "scipy_solver",
]


@pytest.mark.parametrize("method", ["steps", "dopri5", "rk4"])
def test_times_may_be_repeated_and_in_any_order(method):
    mixed = torch.tensor([0.5, 0.0, 0.5, 1.0, 0.2, 1.0, -0.3, -0.3, 0.0], dtype=torch.float64)
    exact = dp.dynamics.solve((A, b), u0, mixed)
    found = dp.dynamics.solve(lambda t, u: A @ u + b, u0, mixed, method=method)
    tolerance = {"steps": 1e-6, "dopri5": 1e-7, "rk4": 1e-2}[method]
    torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)
    # Steps have come by another way.
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=tolerance if method == "steps" else 0)


def test_all_times_may_be_the_start():
    at_start = torch.zeros(3, dtype=torch.float64)
    for rows in (u0, u0.expand(4, 2)):
        found = dp.dynamics.solve(pendulum, rows, at_start, method="dopri5")
        torch.testing.assert_close(found, rows.unsqueeze(-2).expand(*rows.shape[:-1], 3, 2))


@pytest.mark.parametrize("last", [3.0, -3.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_field_is_not_asked_for_times_outside_of_the_range(method, last):
    asked = []

    def field(t, u):
        asked.append(float(t))
        return 1e-4 * u * torch.cos(t)  # so slow that a first step would be tried far away

    dp.dynamics.solve(field, u0, torch.tensor([last / 2, last], dtype=torch.float64), method=method, rtol=1e-6)
    assert min(0.0, last) <= min(asked)
    assert max(asked) <= max(0.0, last)


def test_a_field_that_ends_with_the_range_is_solved_to_its_end():
    # A table that holds the field until 3, and nonsense after.
    field = lambda t, u: torch.where(t <= 3, -u, 1e9 * torch.ones_like(u))
    ends = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = dp.dynamics.solve(field, u0, ends, method="dopri5")
    torch.testing.assert_close(found, u0 * torch.exp(-ends)[:, None], rtol=1e-7, atol=1e-8)


def test_gradients_pass_through_adaptive_solutions_and_their_times():
    # Compared with those of the exact solution.
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.5, 0.7]], dtype=torch.float64)
    found = []
    for as_function in (True, False):
        a, start = A.clone().requires_grad_(), u0.clone().requires_grad_()
        when = torch.tensor([0.4, 1.0, 0.4], dtype=torch.float64, requires_grad=True)
        if as_function:
            path = dp.dynamics.solve(lambda _, x, a=a: a @ x, start, when, method="dopri5")
        else:
            path = dp.dynamics.solve(a, start, when)
        found.append(torch.autograd.grad((weight * path).sum(), (a, start, when)))
    for adaptive, exact in zip(*found, strict=True):
        torch.testing.assert_close(adaptive, exact, rtol=1e-6, atol=1e-6)


def test_times_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="position 1"):
        dp.dynamics.solve(pendulum, u0, torch.tensor([0.5, torch.nan]), method="dopri5")


def test_what_cannot_be_solved_is_said():
    with pytest.raises(ValueError, match="u0 has 2 states"):
        dp.dynamics.solve(torch.eye(3), torch.ones(2), times.float())
    with pytest.raises(TypeError, match=r"matrix A, a pair \(A, b\), or a function"):
        dp.dynamics.solve("A", u0, times)
    with pytest.raises(ValueError, match="solved exactly"):
        dp.dynamics.solve(A, u0, times, method="dopri5")
    with pytest.raises(ValueError, match="an axis of times"):
        dp.dynamics.solve(A, u0, torch.tensor(1.0))
    with pytest.raises(ValueError, match="times that all rows share"):
        dp.dynamics.solve(pendulum, u0, times.expand(2, -1), method="dopri5")
