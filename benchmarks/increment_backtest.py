"""The increment model on COVID-19 patients in intensive care in German counties: does it forecast, does it fill gaps?

    python benchmarks/increment_backtest.py [--repeats 10] [--bootstrap 1000]

Forecasts: three windows of 70 days, 11 origins (38, 41, ..., 68), one day ahead, one fixed list of models. Tables of
squared errors with a bootstrap over counties of the error relative to that of no change. Gaps: 10, 50 and 75 % of the
reports of complete counties hidden. CPU time of this process, one thread.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import platform
import time
import warnings

import numpy as np
import pandas as pd

import dynapath as dp

WINDOWS = ("spring2020", "autumn2020", "winter2021")
ORIGINS = range(38, 69, 3)
MODELS = (
    "zero",
    "mean",
    "modified_mean",
    "modified_mean_slide",
    "ols",
    "ols_published",
    "increment_individual",
    "increment_global",
    "increment_partial",
)
COVARIATE = "cases_7d_mean"
METHODS = (
    "locf",
    "linear",
    *(f"{how}_{p}" for p in ("individual", "global", "partial") for how in ("filter", "smooth")),
)


def forecasts(counties, *, start: str, before_first: str) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Left out")
        return dp.stats.backtest(
            counties, models=MODELS, covariates=COVARIATE, origins=ORIGINS, start=start, before_first=before_first
        )


def show(title: str, table: pd.DataFrame, n_bootstrap: int) -> None:
    scores = dp.stats.compare_forecasts(table, n_bootstrap=n_bootstrap)
    in_percent = scores[["relative", "lower", "upper"]].mul(100).round(1).add_suffix(" %")
    shown = pd.concat([scores[["model", "n", "sse", "mae", "largest", "coverage"]].round(3), in_percent], axis=1)
    best = table.assign(square=table["error"] ** 2).pivot_table(
        index="origin", columns="model", values="square", aggfunc="sum", observed=True
    )
    shown["origins better than zero"] = [int((best[name] < best["zero"]).sum()) for name in scores["model"]]
    print(f"\n{title}\n{shown.to_string(index=False)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="how often to hide other reports")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of counties")
    options = parser.parse_args()
    print(
        f"dynapath {dp.__version__}, numpy {np.__version__}, Python {platform.python_version()}, {platform.machine()}"
    )

    for window in WINDOWS:
        counties = dp.datasets.divi_icu(window)
        began = time.process_time()
        for start, before in (("locf", "skip"), ("locf", "zero"), ("state", "skip")):
            table = forecasts(counties, start=start, before_first=before)
            what = f"start={start!r}" + (
                ", baselines take days before the first report for 0" if before == "zero" else ""
            )
            show(f"{window}, {what}", table, options.bootstrap)
            if window == "spring2020":
                single = counties.obs_names[counties.obs["max_sites"] == 1]
                show(
                    f"{window}, counties with one hospital, {what}",
                    table[table["unit"].isin(single)],
                    options.bootstrap,
                )
        print(f"{time.process_time() - began:.1f} s of CPU time")

    for window in WINDOWS:
        counties = dp.datasets.divi_icu(window)
        began = time.process_time()
        table = dp.stats.censoring_study(
            counties, fractions=(0.1, 0.5, 0.75), methods=METHODS, covariates=COVARIATE, n_repeats=options.repeats
        )
        grouped = table.groupby(["fraction", "method"], sort=False)
        shown = pd.DataFrame(
            {
                "mse per hidden day": grouped["sse"].sum() / grouped["n_hidden"].sum(),
                "mse over all days (published)": grouped["mse_all_days"].mean(),
                "median over units": grouped["mse_all_days"].median(),
                "covered (90 %)": grouped["covered"].mean(),
            }
        )
        n = table["unit"].nunique()
        print(f"\n{window}: {n} complete counties, {options.repeats} repetitions\n{shown.round(3).to_string()}")
        print(f"{time.process_time() - began:.1f} s of CPU time", flush=True)


if __name__ == "__main__":
    main()
