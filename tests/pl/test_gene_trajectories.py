import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dynapath as dp


@pytest.fixture(scope="session")
def counted():
    adata = dp.datasets.simulate_snapshots("crossing", n_cells=20, n_genes=12)
    quick = dp.models.Training(
        static_epochs=1, joint_epochs=1, n_restarts=2, prior_steps=20, n_hidden=8, progress=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a fit has something to say, which is not the point here
        dp.tl.fit_dynamic_vae(adata, time_key="time", training=quick, n_bootstrap=3)
    return adata


@pytest.fixture
def cells(counted):
    return counted.copy()


@pytest.fixture
def genes(cells):
    return list(cells.var_names[[5, 2, 7]])


def draw(adata, genes, **options):
    return dp.pl.gene_trajectories(adata, genes, show=False, **options)


def artist(ax, gid):
    (found,) = (found for found in ax.get_children() if found.get_gid() == gid)
    return found


def test_there_is_one_panel_per_gene_in_the_order_asked_for(cells, genes):
    assert [ax.get_title() for ax in draw(cells, genes)] == genes
    assert [ax.get_title() for ax in draw(cells, genes[0])] == genes[:1]


def test_lines_and_bands_are_the_numbers_of_get_gene_trajectories(cells, genes):
    expected = dp.get.gene_trajectories(cells, genes, level=0.5)
    for ax, gene in zip(draw(cells, genes, level=0.5), genes, strict=True):
        for group in "012":
            path = expected[(expected["group"] == group) & (expected["gene"] == gene)]
            np.testing.assert_allclose(artist(ax, f"group {group}").get_xydata(), path[["time", "mean"]])
            band = artist(ax, f"uncertainty {group}").get_paths()[0].vertices[:, 1]
            assert (band.min(), band.max()) == pytest.approx((path["lower"].min(), path["upper"].max()))


def test_dots_are_the_measured_means_of_groups_with_enough_cells(cells, genes):
    cells.obsm["dynvae_groups"] = np.eye(3, dtype=np.float32)[np.arange(cells.n_obs) % 2]
    expected = dp.get.observed_genes(cells, genes, level=0.5)
    for ax, gene in zip(draw(cells, genes, level=0.5), genes, strict=True):
        for group in "01":
            rows = expected[(expected["group"] == group) & (expected["gene"] == gene)]
            np.testing.assert_allclose(artist(ax, f"observed {group}").get_ydata(), rows["mean"])
            drawn = np.array([bar[:, 1] for bar in artist(ax, f"error {group}").get_segments()])
            # The lower end of a bar is at zero where the interval would go below.
            np.testing.assert_allclose(drawn, rows[["lower", "upper"]])
        assert len(artist(ax, "observed 2").get_ydata()) == 0


def test_no_axis_goes_below_zero(cells):
    assert all(ax.get_ylim()[0] >= 0 for ax in draw(cells, list(cells.var_names)))


def test_lines_go_on_dashed_to_a_held_out_future(cells, genes):
    ax = draw(cells, genes[0], heldout=1.5)[0]
    beyond = artist(ax, "group 0 extrapolated")
    assert (beyond.get_xdata().min(), beyond.get_xdata().max()) == (1, 1.5)
    assert beyond.is_dashed()


@pytest.mark.parametrize("width", [85, 175])
def test_many_genes_wrap_into_rows_and_long_names_into_lines(cells, width):
    names = [f"ENSG{i:011d}_a_gene_with_a_very_long_name.{i}" for i in range(12)]
    cells.var_names = names
    cells.uns["dynvae"]["params"]["genes"] = np.array(names, dtype=object)
    figure = dp.pl.gene_trajectories(cells, names[:7], figsize=(width / 25.4, 9), return_fig=True)
    figure.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in figure.axes]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    assert [ax.get_title().replace("\n", "") for ax in figure.axes] == names[:7]
    rows = {ax.get_subplotspec().rowspan.start for ax in figure.axes}
    assert len(rows) == (4 if width == 85 else 2)


def test_groups_choose_lines(cells, genes):
    ax = draw(cells, genes, groups=[1])[0]
    assert {line.get_gid() for line in ax.lines} == {"group 1", "observed 1"}


def test_the_axis_says_what_the_means_are_per(cells, genes):
    assert draw(cells, genes)[0].get_ylabel() == "mean per 10$^4$ counts"
    cells.obs["size"] = 1.0
    cells.uns["dynvae"]["params"]["size_factor_key"] = "size"
    assert draw(cells, genes)[0].get_ylabel() == "mean per 10$^4$ size factors"


def test_show_return_fig_and_axes_decide_what_comes_back(cells, genes, monkeypatch):
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(True))
    assert isinstance(dp.pl.gene_trajectories(cells, genes, return_fig=True), Figure)
    assert all(isinstance(ax, Axes) for ax in draw(cells, genes))
    _, given = plt.subplots(1, 3)
    assert list(draw(cells, genes, axes=given)) == list(given)
    assert not calls
    assert dp.pl.gene_trajectories(cells, genes, show=True) is None
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("genes", "options", "error", "message"),
    [
        ("Gene5", {}, KeyError, "no 'Gene5'; close to it: 'gene5'"),
        ([], {}, ValueError, "genes is empty"),
        ("gene5", {"groups": "7"}, ValueError, "'7' is none"),
        ("gene5", {"level": 90}, ValueError, "between 0 and 1"),
        ("gene5", {"heldout": "late"}, ValueError, "heldout must be times"),
        ("gene5", {"key": "other"}, KeyError, "no fit under 'other'"),
    ],
)
def test_bad_input_is_named_and_no_figure_is_left(cells, genes, options, error, message):
    with pytest.raises(error, match=message):
        draw(cells, genes, **options)
    assert not plt.get_fignums()
    assert "dynvae_group_colors" not in cells.uns


def test_the_number_of_axes_must_be_that_of_genes(cells, genes):
    with pytest.raises(ValueError, match="axes must be 3 Axes, one for each of the 3 genes; 1 given"):
        draw(cells, genes, axes=plt.figure().add_subplot())


def test_a_fit_without_counts_says_so(adata):
    with pytest.raises(ValueError, match="made with use_rep='Z_true'"):
        draw(adata, adata.var_names[0])
    assert not plt.get_fignums()
