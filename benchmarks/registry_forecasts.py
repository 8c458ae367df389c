"""Forecasts of real registries from landmarks: the next visit, and every later visit from the first one to three.

    python benchmarks/registry_forecasts.py pbc2 paquid aids [--seed 0] [--tables FOLDER]

For each registry: RMSE, CRPS and coverage of every model, by landmark and by time since the landmark; the paired difference
between `latent_dynamics` (and the latent model alone) and the best other model, with its 95 % interval over patients; the
weight of the latent model in the combination; CPU time. Data as in `dp.datasets`; all models are fitted in the same run, on
the same folds of patients.

Models that do not depend on the horizon are fitted once for both.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

import dynapath as dp
from dynapath.stats.landmark_forecast import MODELS
from dynapath.stats.registry.mixed import MixedModel
from dynapath.stats.registry.state_space import StateSpaceForecaster

BASELINE = {
    "pbc2": "~ age_entry + female + drug_dpca",
    "paquid": "~ age_entry + primary_school + male",
    "aids": "~ drug_ddI + male + prevOI_aids + azt_failure",
}
AHEAD = {"pbc2": [0, 1, 2, 4, 20], "paquid": [0, 3, 6, 10, 30], "aids": [0, 4, 8, 20]}  # years, years, months
OURS = ("latent_alone", "latent_dynamics")


class FittedOnce:
    """A model whose fits are kept by the subjects that it was fitted to."""

    def __init__(self, model):
        self.model, self.fits, self.cpu = model, {}, 0.0

    def fit(self, visits):
        if visits.subjects not in self.fits:
            start = time.process_time()
            self.fits[visits.subjects] = self.model.fit(visits)
            self.cpu += time.process_time() - start
        return self.fits[visits.subjects]


def show(table: pd.DataFrame) -> str:
    """As markdown."""
    text = [
        ["" if pd.isna(x) else f"{x:.4f}" if isinstance(x, float) else str(x) for x in row]
        for row in table.to_numpy(object)
    ]
    head = [str(c) for c in table.columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *text])


def report(name: str, horizon: str, table: pd.DataFrame) -> None:
    """Print everything about one registry and horizon."""
    score = dp.metrics.forecast_scores
    table = table.assign(
        landmark=table["landmark"].clip(upper=3), since=pd.cut(table["ahead"], AHEAD[name]).astype(str)
    )
    whole = score(table)
    print(f"\n## {name}, horizon {horizon}\n\n{show(whole)}")
    print(f"\nBy landmark (3 is 3 or more)\n\n{show(score(table, by=('model', 'landmark')))}")
    if horizon == "all":
        print(f"\nBy time since the landmark\n\n{show(score(table, by=('since', 'model')).sort_values('since'))}")
    else:
        print(f"\nBy item\n\n{show(score(table, by=('item', 'model')))}")
    others = whole[~whole["model"].isin(OURS)]
    for model in OURS:
        rows = [
            dp.stats.compare_landmarks(table, model=model, reference=reference, score=kind)
            for kind, reference in (
                ("rmse", str(others.loc[others["rmse"].idxmin(), "model"])),
                ("rmse", "lmm"),
                ("crps", str(others.loc[others["crps"].idxmin(), "model"])),
                ("crps", "lmm"),
            )
        ]
        print(f"\n{show(pd.concat(rows).drop_duplicates())}")
    weights = pd.DataFrame([fold["latent_dynamics"] for fold in table.attrs["weights"]])
    print(f"\nWeights, folds 0 to {len(weights) - 1}\n\n{show(weights)}", flush=True)


def main() -> None:
    """Run the registries that were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("registries", nargs="+", choices=list(BASELINE))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--tables", type=Path, help="folder for the tables of forecasts, as CSV")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*subjects have one visit")
    for name in given.registries:
        visits = getattr(dp.datasets, name)()
        kept = {
            "lmm": FittedOnce(MixedModel()),
            "latent_alone": FittedOnce(StateSpaceForecaster(random_state=given.seed)),
        }
        models = {model: model for model in MODELS} | kept
        for horizon in ("next", "all"):
            start = time.process_time()
            table = dp.stats.landmark_forecast(
                visits,
                baseline=BASELINE[name],
                models=models,
                horizon=horizon,
                folds=given.folds,
                random_state=given.seed,
            )
            cpu = time.process_time() - start
            report(name, horizon, table)
            spent = ", ".join(f"{model} {fit.cpu:.0f}" for model, fit in kept.items())
            print(f"\nCPU {cpu:.0f} s; fits so far: {spent} s; seed {given.seed}; numpy {np.__version__}", flush=True)
            if given.tables is not None:
                table.to_csv(given.tables / f"{name}_{horizon}_{given.seed}.csv", index=False)


if __name__ == "__main__":
    main()
