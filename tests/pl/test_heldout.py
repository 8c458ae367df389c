import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import dynapath as dp

ENERGY = {
    0.5: {"dynvae": 0.05, "floor": 0.01, "oracle_vae": 0.02, "forward": 0.84, "mixture": 0.125, "mine": 0.3},
    1.0: {"dynvae": 0.55, "floor": 0.003, "oracle_vae": 0.1, "forward": 0.93, "mean_shift": 0.12, "mine": 0.4},
}


def scores(times=(0.5, 1.0), seeds=1):
    rows = []
    for seed in range(seeds):
        for time in times:
            for name, energy in ENERGY[time].items():
                n = 50 if name == "floor" else 100
                ratio = np.nan if name == "mean_shift" else 1 - energy
                rows += [(name, time, "energy", energy + 0.01 * seed, n, seed), (name, time, "w2", 3 + energy, n, seed)]
                rows += [(name, time, "variance_ratio", ratio, n, seed)]
    table = pd.DataFrame(rows, columns=["method", "holdout", "metric", "value", "n_cells", "seed"])
    table.attrs["extrapolated"] = [1.0]
    return table


def draw(table=None, **options):
    return dp.pl.heldout(scores() if table is None else table, show=False, **options)


def drawn(ax, gid):
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def place(ax, gid):
    (line,) = drawn(ax, gid)
    return float(line.get_xdata()[0])


def rows(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def legend_labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_there_is_one_panel_per_held_out_time_and_extrapolation_is_said():
    axes = draw()
    assert [ax.get_title(loc="left") for ax in axes] == ["time 0.5", "time 1, extrapolated"]
    assert {ax.get_xlabel() for ax in axes} == {"energy distance"}


def test_each_method_is_where_its_score_is():
    for ax, time in zip(draw(), (0.5, 1.0), strict=True):
        for name, energy in ENERGY[time].items():
            gid = name if name in ("floor", "oracle_vae") else f"method {name}"
            assert place(ax, gid) == pytest.approx(energy)


def test_the_best_method_is_on_top_and_references_have_no_row():
    (ax,) = draw(scores(times=[0.5]))
    assert rows(ax) == ["dynvae", "mixture", "mine", "forward"]
    assert ax.yaxis_inverted()
    # By mean rank: 1, 2, 2, 2.5, 4.
    assert rows(draw()[0]) == ["mean_shift", "dynvae", "mixture", "mine", "forward"]


def test_a_variance_ratio_is_good_near_one():
    table = scores(times=[0.5])
    table.loc[(table["metric"] == "variance_ratio") & (table["method"] == "forward"), "value"] = 1.01
    (ax,) = draw(table, metric="variance_ratio")
    assert rows(ax) == ["forward", "dynvae", "mixture", "mine"]
    assert place(ax, "ideal") == 1


def test_model_baselines_and_own_methods_look_different():
    (ax,) = draw(scores(times=[0.5]))
    looks = {}
    for name in ("dynvae", "forward", "mixture", "mine"):
        (line,) = drawn(ax, f"method {name}")
        looks[name] = (line.get_marker(), line.get_markerfacecolor(), line.get_markeredgecolor())
    assert looks["forward"] == looks["mixture"]
    assert len(set(looks.values())) == 3
    (label,) = [label for label in ax.get_yticklabels() if label.get_fontweight() == "bold"]
    assert label.get_text() == "dynvae"


def test_several_seeds_are_dots_around_their_mean_and_a_band_of_the_references():
    (ax,) = draw(scores(times=[0.5], seeds=3))
    assert place(ax, "method dynvae") == pytest.approx(0.06)
    (dots,) = [line for line in ax.lines if line.get_marker() == "." and line.get_ydata()[0] == 0]
    np.testing.assert_allclose(dots.get_xdata(), [0.05, 0.06, 0.07])
    assert place(ax, "floor") == pytest.approx(0.02)
    (band,) = drawn(ax, "range floor")
    np.testing.assert_allclose([band.get_x(), band.get_width()], [0.01, 0.02])


def test_values_are_written_beside_the_methods():
    (ax,) = draw(scores(times=[0.5]))
    assert [text.get_text() for text in ax.texts] == ["0.05", "0.12", "0.30", "0.84"]
    (ax,) = draw(scores(times=[0.5]), values=False)
    assert not ax.texts


def test_methods_without_the_metric_are_left_out():
    assert "mean_shift" not in rows(draw(metric="variance_ratio")[1])
    first, _ = draw()
    assert not drawn(first, "method mean_shift")
    assert "mean_shift" in rows(first)


def test_the_legend_names_what_is_there_and_the_floor_of_fewer_cells():
    figure = dp.pl.heldout(scores(), metric="w2", return_fig=True)
    assert legend_labels(figure) == [
        "dynamic VAE",
        "baselines",
        "other methods",
        "floor: another sample of the truth (50 cells)",
        "oracle_vae: limit of the decoder",
    ]
    baselines = scores()[lambda table: table["method"].isin(["forward", "mixture"])]
    assert legend_labels(dp.pl.heldout(baselines, return_fig=True)) == ["baselines"]
    assert not legend_labels(dp.pl.heldout(scores(), legend=False, return_fig=True))


@pytest.mark.parametrize(("width", "columns"), [(3.35, 1), (6.9, 2)])
def test_panels_are_side_by_side_where_there_is_room(width, columns):
    axes = draw(figsize=(width, 5.0))
    assert len({ax.get_subplotspec().colspan.start for ax in axes}) == columns
    named = [ax for ax in axes if any(rows(ax))]
    assert len(named) == 3 - columns


def test_it_draws_on_given_axes():
    _, given = plt.subplots(1, 2)
    assert draw(axes=given).tolist() == given.tolist()
    with pytest.raises(ValueError, match="axes must be 2 Axes, one for each of the held-out times 0.5, 1; 1 given"):
        draw(axes=given[0])


def test_what_comes_back(monkeypatch):
    assert isinstance(dp.pl.heldout(scores(), return_fig=True), Figure)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert dp.pl.heldout(scores(), show=True) is None
    assert shown


def test_a_table_of_something_else_is_refused():
    with pytest.raises(KeyError, match="table has no column 'metric'. Give what dp.tl.evaluate_heldout returned"):
        draw(scores().drop(columns="metric"))
    with pytest.raises(ValueError, match="no values of metric='mmd'; it has those of 'energy', 'w2', 'variance_ratio'"):
        draw(metric="mmd")
    with pytest.raises(ValueError, match="references alone"):
        draw(scores()[lambda table: table["method"] == "floor"])


def test_it_draws_what_evaluate_heldout_returns():
    cells = dp.datasets.simulate_snapshots("branching", n_cells=20, n_genes=30)
    table = dp.tl.evaluate_heldout(cells, time_key="time", holdout=[0.25, 0.5], methods=["floor", "forward", "mixture"])
    axes = draw(table)
    expected = table[(table["metric"] == "energy") & (table["method"] == "forward")]["value"]
    assert [place(ax, "method forward") for ax in axes] == expected.tolist()
