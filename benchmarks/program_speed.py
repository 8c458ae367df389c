"""CPU time of 10,000 units of a program with three parameters, in one batch and in a loop over units with scipy.

    python benchmarks/program_speed.py

The program is y = a exp(-b t) + c at 8 times with noise of .02. All ways start in turn at the same values, in one process
and one thread; those of scipy are timed on 300 units and extrapolated. They minimise the same sum of squares, with their
default tolerances and numerical derivatives. Written out: seconds of CPU, the ratio, and the largest distance from the
optimum of scipy at tolerances of 1e-15.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy.optimize import curve_fit, least_squares, minimize

import dynapath as dp

N, T, TIMED, ROUNDS = 10_000, 8, 300, 3
t = np.linspace(0, 4, T)
START = np.array([1.0, 1.0, 0.5])


def curve(t, a, b, c):
    return a * np.exp(-b * t) + c


def program(p, y, t):
    return y - (p["a"] * torch.exp(-p["b"] * t) + p["c"])


def by_loop(y, find):
    start = time.process_time()
    found = np.array([find(row) for row in y[:TIMED]])
    return (time.process_time() - start) / TIMED * N, found


WAYS = {
    "least_squares (default)": lambda y: least_squares(lambda x: y - curve(t, *x), START).x,
    "least_squares (lm)": lambda y: least_squares(lambda x: y - curve(t, *x), START, method="lm").x,
    "minimize (BFGS)": lambda y: minimize(lambda x: ((y - curve(t, *x)) ** 2).sum(), START).x,
    "curve_fit": lambda y: curve_fit(curve, t, y, START)[0],
}


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    y = curve(t, *rng.uniform(0.5, 1.5, (3, N, 1))) + 0.02 * rng.standard_normal((N, T))
    data, params = {"y": y, "t": t}, dict(zip("abc", START, strict=True))
    best = np.array([least_squares(lambda x, y=row: y - curve(t, *x), START, xtol=1e-15, ftol=1e-15, gtol=1e-15).x
                     for row in y[:TIMED]])  # fmt: skip
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for se in ("hessian", None):
            start = time.process_time()
            fitted = dp.stats.estimate(program, data, params=params, kind="residuals", shared="t", se=se)
            times.setdefault(f"estimate, se={se}", []).append(time.process_time() - start)
        for name, find in WAYS.items():
            seconds, found = by_loop(y, find)
            times.setdefault(name, []).append(seconds)
            if len(times[name]) == 1:
                print(f"{name:24s} largest distance from the optimum {np.abs(found - best).max():.1e}")
    print(
        f"estimate                 largest distance from the optimum {np.abs(fitted.estimates[:TIMED] - best).max():.1e}"
    )
    ours = np.median(times["estimate, se=hessian"])
    print(
        f"\n{np.mean(fitted.status == 'ok'):.1%} of {N} units ok, {fitted.n_iter.mean():.1f} steps each; median of {ROUNDS} rounds"
    )
    for name, values in times.items():
        print(f"{name:24s} {np.median(values):8.3f} s of CPU   ratio {np.median(values) / ours:7.1f}")


if __name__ == "__main__":
    main()
