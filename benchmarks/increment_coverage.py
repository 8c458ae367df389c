"""How often 90 % intervals of increment parameters contain the truth, on simulated panels with gaps.

    python benchmarks/increment_coverage.py            # some minutes of CPU time, one thread

Units follow the model with normal innovations and report by a two-state chain (6 % missing). Individual coefficients have
a normal distribution over units; for shared ones its standard deviation is 0. Units start in equilibrium or, so that the
first report tells nothing of the coefficients, anywhere. The skewed distributions are those of `simulate_reports`.
A unit at the bound of its state coefficient has no standard error for it and is not counted.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import pandas as pd
from scipy.stats import t as student

import dynapath as dp
from dynapath.read.panel import Panel, read_panel
from dynapath.stats.increment.bootstrap import Bootstrap
from dynapath.stats.increment.fit import IncrementFit, fit

MEAN, SD = np.array([0.3, -0.2, 0.25]), np.array([0.15, 0.06, 0.1])


def simulate(
    n_units: int, n_days: int, rng: np.random.Generator, spread: float = 1.0, *, burn: int = 200
) -> tuple[Panel, np.ndarray]:
    params = MEAN + spread * SD * rng.standard_normal((n_units, 3))
    params[:, 1] = np.clip(params[:, 1], -0.6, -0.03)
    z = np.zeros((n_units, n_days + burn))
    level = np.exp(rng.normal(0.5, 0.5, n_units))
    for t in range(1, n_days + burn):
        z[:, t] = 0.95 * z[:, t - 1] + rng.normal(0, 0.3, n_units)
    z = level[:, None] * np.exp(0.5 * z)
    y = np.zeros((n_units, n_days + burn))
    if not burn:
        y[:, 0] = rng.normal(4.0, 1.5, n_units)
    for t in range(1, n_days + burn):
        y[:, t] = y[:, t - 1] + params[:, 0] + params[:, 1] * y[:, t - 1] + params[:, 2] * z[:, t - 1]
        y[:, t] += 0.5 * rng.standard_normal(n_units)
    y, z = y[:, burn:].copy(), z[:, burn:].copy()
    missing = np.zeros(n_units, bool)
    for t in range(n_days):
        missing = rng.random(n_units) < np.where(missing, 0.8, 0.0147)
        y[missing, t] = np.nan
    units = pd.Index([str(u) for u in range(n_units)])
    days = pd.Index([str(t) for t in range(n_days)])
    return Panel(y, z[None], ("z",), np.array([0]), np.array([1]), units, days), params


def skewed(n_units: int, seed: int) -> tuple[Panel, np.ndarray]:
    reports = dp.datasets.simulate_reports(n_units, family="normal", silent=0.0, random_state=seed)
    return read_panel(reports, covariates="incidence").until(68), reports.obsm["params_true"].to_numpy()


def covered(result: IncrementFit, truth: np.ndarray, *, own: bool, level: float = 0.9) -> np.ndarray:
    df = np.maximum(result.n - 3.0, 1.0)[:, None] if own else np.inf
    half = student.ppf((1 + level) / 2, df) * result.se
    inside = np.abs(result.params - truth) <= half
    return np.where(np.isfinite(result.se), inside, np.nan)


class Report:
    """Prints the share of intervals that have the truth, with CPU time."""

    def __init__(self) -> None:
        self.start = time.process_time()

    def __call__(self, name: str, T: int, n: int, parts: list[np.ndarray]) -> None:
        cover = np.nanmean(np.concatenate([np.atleast_2d(part) for part in parts]), axis=0)
        seconds = time.process_time() - self.start
        print(f"{name:60s} T={T:4d} {n:5d} intervals: {cover.round(3)}  ({seconds:.0f} CPU s)", flush=True)


def individual_and_global(report: Report, n_panels: int, settings: Bootstrap) -> None:
    rng = np.random.default_rng(0)
    for T in (69, 500):
        panel, truth = simulate(1000, T, rng)
        for se in ("hessian", "sandwich"):
            report(f"individual, {se}", T, 1000, [covered(fit(panel, se=se, progress=False), truth, own=True)])
        fitted = fit(panel, se="bootstrap", bootstrap=settings, progress=False)
        report("individual, bootstrap", T, 1000, [covered(fitted, truth, own=True)])
        for se in ("hessian", "bootstrap"):
            fitted = fit(panel, se=se, bias_correction=True, bootstrap=settings, progress=False)
            report(f"individual, {se}, bias corrected", T, 1000, [covered(fitted, truth, own=True)])
    for se in ("hessian", "sandwich"):
        parts = []
        for _ in range(4 * n_panels):
            panel, truth = simulate(60, 69, rng, spread=0.0)
            parts.append(covered(fit(panel, pooling="global", se=se, progress=False), truth, own=False)[:1])
        report(f"global, {se}", 69, len(parts), parts)


def partial(report: Report, n_panels: int) -> None:
    """The same panels with and without bias correction, which takes longer and gets a fifth of them."""
    designs = {
        "start anywhere": (lambda seed: simulate(200, 69, np.random.default_rng(seed), burn=0), MEAN),
        "start in equilibrium": (lambda seed: simulate(200, 69, np.random.default_rng(seed)), MEAN),
        "skewed, start in equilibrium": (lambda seed: skewed(200, seed), skewed(100_000, 0)[1].mean(0)),
    }
    for design, (draw, mean) in designs.items():
        for corrected in (False, True):
            units, means = [], []
            for seed in range(max(n_panels // 5, 2) if corrected else n_panels):
                panel, truth = draw(seed)
                settings = {"bias_correction": corrected, "bootstrap": Bootstrap(20)}
                fitted = fit(panel, pooling="partial", se="hessian", progress=False, **settings)
                units.append(covered(fitted, truth, own=False))
                d = fitted.dynamics
                means.append(np.abs(d.mean - mean) <= 1.645 * np.sqrt(np.diag(d.mean_covariance)))
            name = f"partial, {design}" + (", bias corrected" if corrected else "")
            report(f"{name}: units", 69, 200 * len(units), units)
            report(f"{name}: means", 69, len(means), means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--refits", type=int, default=200, help="for individual coefficients")
    parser.add_argument("--panels", type=int, default=100, help="with partial pooling; four times as many with global")
    parser.add_argument("--only-partial", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".* negative")
    report = Report()
    if not args.only_partial:
        individual_and_global(report, args.panels, Bootstrap(args.refits))
    partial(report, args.panels)


if __name__ == "__main__":
    main()
