"""CPU time of fitting the increment model to 1,281 units x 69 days, against scipy and a torch loop; growth with size.

    python benchmarks/increment_speed.py             # ratios, the ways in turn in one process, one thread
    python benchmarks/increment_speed.py --bootstrap # 1,000 refits of all units
    python benchmarks/increment_speed.py --growth    # up to 100,000 units x 365 days, each size in a process of its own

scipy: `least_squares(method="lm")` for every unit that is not constant, with a compiled residual and its own numerical
derivatives. torch: a loop over days for each unit with a gradient step after each of 150 passes, as in the original
publication; timed on a few units and passes and extrapolated, since all would take an hour.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from numba import njit
from scipy.optimize import least_squares

import dynapath as dp
from dynapath.read.panel import Panel, read_panel
from dynapath.stats.increment.bootstrap import Bootstrap
from dynapath.stats.increment.fit import fit

TORCH_UNITS, TORCH_PASSES, PUBLISHED_PASSES = 3, 4, 150


@njit
def residuals(b, y, z, out):
    seen, s, n = False, 0.0, 0
    for t in range(y.shape[0]):
        if not seen:
            if not math.isnan(y[t]):
                s, seen = y[t], True
            continue
        s = s + b[0] + b[1] * s + b[2] * z[t - 1]
        if not math.isnan(y[t]):
            out[n] = y[t] - s
            n += 1
            s = y[t]
    return out


def with_scipy(panel: Panel, rows: np.ndarray) -> tuple[np.ndarray, float]:
    losses = np.full(panel.n_units, np.nan)
    start = time.process_time()
    for u in rows:
        y, z = panel.y[u], panel.z[0, u]
        out = np.empty(np.isfinite(y).sum() - 1)
        found = least_squares(lambda b, y=y, z=z, out=out: residuals(b, y, z, out).copy(), np.zeros(3), method="lm")
        losses[u] = 2 * found.cost / len(out)
    return losses, time.process_time() - start


def with_torch(panel: Panel, rows: np.ndarray) -> float:
    """CPU seconds per unit and pass."""
    start = time.process_time()
    for u in rows[:TORCH_UNITS]:
        y, z, observed = torch.tensor(panel.y[u]), torch.tensor(panel.z[0, u]), panel.observed[u]
        b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for _ in range(TORCH_PASSES):
            seen, s, loss, n = False, None, 0.0, 0
            for t in range(panel.n_days):
                if not seen:
                    if observed[t]:
                        s, seen = y[t], True
                    continue
                d = b[0] + b[1] * s + b[2] * z[t - 1]
                if observed[t]:
                    loss, n, s = loss + (y[t] - s - d) ** 2, n + 1, y[t]
                else:
                    s = s + d
            (gradient,) = torch.autograd.grad(loss / n, b)
            with torch.no_grad():
                b -= torch.tensor([1e-3, 1e-2, 1e-3]) * gradient
    return (time.process_time() - start) / (TORCH_UNITS * TORCH_PASSES)


def mean_of_fits(panel: Panel, n: int = 5) -> float:
    """CPU seconds of one fit, which alone is too short for the clock."""
    start = time.process_time()
    for _ in range(n):
        fit(panel, stable=False)
    return (time.process_time() - start) / n


def ratios(rounds: int) -> None:
    panel = read_panel(dp.datasets.simulate_reports(), covariates="incidence").until(68)
    found = fit(panel, stable=False)  # compiles
    rows = np.flatnonzero(found.status == "ok")
    with_scipy(panel, rows[:2])
    by_scipy, by_torch = [], []
    for _ in range(rounds):
        mine = mean_of_fits(panel)
        losses, peer = with_scipy(panel, rows)
        loop = with_torch(panel, rows) * PUBLISHED_PASSES * panel.n_units
        mine = 0.5 * (mine + mean_of_fits(panel))
        by_scipy.append(peer / mine)
        by_torch.append(loop / mine)
        apart = np.abs(found.loss - losses)[rows] / np.maximum(losses[rows], 1e-12)
        print(
            f"fit {1e3 * mine:.1f} ms; scipy {peer:.2f} s on {len(rows)} units, x{by_scipy[-1]:.0f}; torch {loop:.0f} s "
            f"(extrapolated), x{by_torch[-1]:.0f}; losses of all units within {apart.max():.1e} of scipy's",
            flush=True,
        )
    print(f"median ratios: scipy x{np.median(by_scipy):.0f}, torch x{np.median(by_torch):.0f}")


def bootstrap() -> None:
    panel = read_panel(dp.datasets.simulate_reports(family="normal", silent=0.0), covariates="incidence").until(68)
    fit(panel, se="bootstrap", bootstrap=Bootstrap(2), progress=False)
    start = time.process_time()
    fit(panel, se="bootstrap", bootstrap=Bootstrap(1000), progress=False)
    print(f"1,000 refits of {panel.n_units} units, none silent: {time.process_time() - start:.0f} CPU s")


def one_size(n_units: int, n_days: int) -> None:
    few = dp.datasets.simulate_reports(n_units=1000, n_days=n_days, random_state=0)
    small = read_panel(few, covariates="incidence")
    fit(small, progress=False)
    times = math.ceil(n_units / 1000)
    panel = small.take(np.tile(np.arange(1000), times)[:n_units])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.process_time()
    fit(panel, se="hessian", progress=True)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{n_units:7d} units x {n_days} days: {seconds:6.2f} CPU s; memory {before:.0f} MB before, peak {peak:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bootstrap", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--size", type=int, nargs=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.size:
        one_size(*args.size)
    elif args.growth:
        for n_units in (12_500, 25_000, 50_000, 100_000):
            subprocess.run([sys.executable, __file__, "--size", str(n_units), "365"], check=True)
    elif args.bootstrap:
        bootstrap()
    else:
        ratios(args.rounds)


if __name__ == "__main__":
    main()
