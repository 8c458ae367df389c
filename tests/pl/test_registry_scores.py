"""Figures of landmark forecasts show the scores of the table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dynapath.metrics import forecast_scores
from dynapath.pl import calibration, landmarks

MODELS = ("locf", "lmm", "latent_dynamics")


@pytest.fixture(scope="module")
def table():
    """Three models on the same cases, with normal errors of known size."""
    rng = np.random.default_rng(0)
    cases = pd.DataFrame({"subject": rng.integers(0, 60, 1200).astype(str), "landmark": rng.integers(1, 7, 1200)})
    cases["item"] = rng.choice(["gait", "grip"], 1200)
    cases["ahead"] = rng.uniform(0.2, 5, 1200)
    cases["observed"] = rng.normal(size=1200)
    parts = []
    for name, sd in zip(MODELS, (1.2, 0.8, 0.7), strict=True):
        part = cases.assign(model=name, predicted=cases["observed"] + sd * rng.normal(size=1200), sd=sd, crps=0.5 * sd)
        for level, z in ((50, 0.674), (90, 1.645)):
            part[f"lower{level}"], part[f"upper{level}"] = part["predicted"] - z * sd, part["predicted"] + z * sd
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def line(ax, gid):
    return next(found for found in ax.lines if found.get_gid() == gid)


@pytest.mark.parametrize("score", ["rmse", "crps", "cover90"])
def test_lines_are_the_scores_by_landmark(table, score):
    axes = landmarks(table, score=score, most_landmarks=3, show=False)
    expected = forecast_scores(table.assign(landmark=table["landmark"].clip(upper=3)), by=("model", "landmark"))
    for name in MODELS:
        own = expected[expected["model"] == name].sort_values("landmark")
        np.testing.assert_allclose(line(axes[0], f"model {name}").get_ydata(), own[score])
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["1", "2", "3+"]


def test_the_right_panel_has_as_many_forecasts_in_each_bin(table):
    axes = landmarks(table, n_bins=5, show=False)
    assert len(line(axes[1], "model lmm").get_xdata()) == 5
    assert (np.diff(line(axes[1], "model lmm").get_xdata()) > 0).all()


def test_points_are_the_coverage_of_each_item_and_landmark(table):
    axes = calibration(table, show=False)
    own = table[(table["model"] == "latent_dynamics") & (table["item"] == "grip") & (table["landmark"] == 2)]
    for level in (50, 90):
        inside = own["observed"].between(own[f"lower{level}"], own[f"upper{level}"]).mean()
        assert line(axes[0], f"cover{level} grip 2").get_xdata()[0] == pytest.approx(inside)
    heights = np.array([bar.get_height() for bar in axes[1].patches])
    assert heights.mean() == pytest.approx(1)
    assert np.abs(heights - 1).max() < 0.3  # 1,200 draws of a uniform distribution


@pytest.mark.parametrize("draw", [calibration, landmarks])
@pytest.mark.parametrize("figsize", [None, (3.35, 4.8)])
def test_figures_are_returned_on_request(table, draw, figsize):
    figure = draw(table, figsize=figsize, return_fig=True)
    assert isinstance(figure, Figure)
    axes = draw(table, axes=figure.axes[:2], show=False)
    assert axes[0] is figure.axes[0]


def test_what_is_not_there_is_named(table):
    with pytest.raises(ValueError, match="'arima' is not in the table; its models are locf"):
        calibration(table, model="arima")
    with pytest.raises(ValueError, match="'arima' is not in the table"):
        landmarks(table, models=["arima"])
    with pytest.raises(ValueError, match="score must be one of 'rmse'"):
        landmarks(table, score="mae")
    with pytest.raises(KeyError, match="no column 'ahead'"):
        landmarks(table.drop(columns="ahead"))
    with pytest.raises(ValueError, match="no intervals"):
        calibration(table.assign(lower90=np.nan))
