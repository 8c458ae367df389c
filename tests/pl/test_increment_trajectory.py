import warnings

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import dynapath as dp


@pytest.fixture(scope="module")
def fitted():
    panel = dp.datasets.simulate_reports(12, 40, silent=0, p_start=0.1)
    dp.stats.fit_increment(panel, covariates="incidence", pooling="partial")
    return panel


@pytest.fixture
def adata(fitted):
    return fitted.copy()


def draw(adata, **options):
    return dp.pl.increment_trajectory(adata, show=False, **options)


def of(ax, gid):
    return [line for line in ax.lines if line.get_gid() == gid]


def test_reports_are_the_dots_and_gaps_are_grey(adata):
    unit = adata.obs_names[3]
    (ax,) = draw(adata, units=unit)
    (reports,) = of(ax, "reports")
    np.testing.assert_array_equal(reports.get_ydata(), adata[unit].X[0])
    grey = sum(area.get_width() for area in ax.patches if area.get_gid() == "gap")
    assert grey == pytest.approx(np.isnan(adata[unit].X).sum())


def test_the_filter_starts_at_the_last_report_and_ends_with_the_gap(adata):
    unit = adata.obs_names[np.isnan(adata.X[:, 1:]).sum(1).argmax()]
    (ax,) = draw(adata, units=unit)
    y, state = adata[unit].X[0], adata[unit].layers["increment_state"][0]
    day = mdates.date2num(adata.var["date"].astype("datetime64[ns]"))
    lines = of(ax, "filtered")
    assert sum(len(line.get_xdata()) - 1 for line in lines) == np.isnan(y).sum()
    for line in lines:
        at = np.searchsorted(day, mdates.date2num(line.get_xdata()))
        assert not np.isnan(y[at[0]])
        assert np.isnan(y[at[1:]]).all()
        np.testing.assert_array_equal(line.get_ydata(), state[at])


def test_imputed_values_join_both_ends_of_a_gap_and_their_band_closes_there(adata):
    dp.stats.impute_increment(adata, mode="smooth", interval=0.9)
    y = adata.X
    inner = [(u, t) for u, t in np.argwhere(np.isnan(y)) if 0 < t < 39 and not np.isnan(y[u, t + 1])]
    unit = adata.obs_names[inner[0][0]]
    (ax,) = draw(adata, units=[unit])
    filled = adata[unit].layers["increment_imputed"][0]
    day = mdates.date2num(adata.var["date"].astype("datetime64[ns]"))
    joined = [
        line
        for line in of(ax, "imputed")
        if line.get_xdata()[-1] <= adata.var["date"].astype("datetime64[ns]").iloc[39]
    ]
    for line in joined:
        at = np.searchsorted(day, mdates.date2num(line.get_xdata()))
        np.testing.assert_array_equal(line.get_ydata(), filled[at])
    assert any(area.get_gid() == "band" for area in ax.collections)


def test_nothing_imputed_nothing_drawn(adata):
    for ax in draw(adata):
        assert not of(ax, "imputed")
        assert not [area for area in ax.collections if area.get_gid() == "band"]


def test_by_default_units_with_most_gaps_between_reports_are_shown(adata):
    adata.X[0, 5:15] = np.nan
    adata.layers["increment_state"][0, 5:15] = 1.0
    assert draw(adata)[0].get_title(loc="left") == adata.obs_names[0]


def test_a_forecast_follows_the_last_day_of_the_fit(adata):
    dp.stats.fit_increment(adata, covariates="incidence", pooling="partial", train_until=29)
    ahead = dp.stats.predict_increment(adata, horizon=3, future_covariates="carry")
    unit = adata.obs_names[1]
    (ax,) = draw(adata, units=unit, forecast=ahead)
    (line,) = of(ax, "forecast")
    rows = ahead[ahead["unit"] == unit]
    np.testing.assert_array_equal(line.get_ydata(), rows["predicted"])
    np.testing.assert_array_equal(
        np.asarray(line.get_xdata(), dtype="datetime64[D]").astype(str), adata.var_names[30:33]
    )
    (reports,) = of(ax, "reports")  # those held out too
    np.testing.assert_array_equal(reports.get_ydata(), adata[unit].X[0])


def test_the_mask_of_the_fit_decides_what_was_reported(adata):
    observed = ~np.isnan(adata.X)
    observed[2, 7] = False
    adata.X[2, 7] = 999.0
    dp.stats.fit_increment(adata, covariates="incidence", observed=observed)
    (ax,) = draw(adata, units=adata.obs_names[2])
    assert np.isnan(of(ax, "reports")[0].get_ydata()[7])


def test_show_return_fig_and_axes_decide_what_comes_back(adata, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert dp.pl.increment_trajectory(adata, show=True) is None
    assert isinstance(dp.pl.increment_trajectory(adata, return_fig=True), Figure)
    given = plt.subplots(1, 2)[1]
    assert list(draw(adata, units=list(adata.obs_names[:2]), axes=given)) == list(given)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "other"}, KeyError, "no fit of the increment model under 'other'"),
        ({"units": "H9"}, ValueError, "'H9' is none of them"),
        ({"units": []}, ValueError, "none was given"),
        ({"units": ["0001"] * 30}, ValueError, "more than the 24"),
        ({"units": "0001", "axes": []}, ValueError, "axes must be 1 Axes"),
    ],
)
def test_what_does_not_exist_is_refused(adata, options, error, message):
    with pytest.raises(error, match=message):
        draw(adata, **options)


def test_a_unit_that_never_reported_is_an_empty_panel(adata):
    adata.X[4] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.stats.fit_increment(adata, covariates="incidence")
    (ax,) = draw(adata, units=adata.obs_names[4])
    assert not of(ax, "filtered")
