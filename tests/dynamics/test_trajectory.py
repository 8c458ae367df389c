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
