"""Dynamic genes of groups: on paths whose changes are known, and on a fit."""

import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath.models import Training
from dynapath.models.gene_paths import FoundGenes, GenePaths

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit has not converged:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*restarts reach a likelihood within:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only one of .* restarts reached:UserWarning"),
    pytest.mark.filterwarnings("ignore:Groups with less than:UserWarning"),
    pytest.mark.filterwarnings("ignore:3 times are fewer than:UserWarning"),
]

GENES = ["flat", "doubles", "rises_and_falls", "noisy"]


@pytest.fixture(scope="module")
def fitted():
    cells = dp.datasets.simulate_snapshots("rotating", n_cells=20, n_genes=4, times=(0, 1, 2), random_state=1)
    cells.var_names = GENES
    cells.X = cells.X.toarray() + 1
    quick = Training(static_epochs=2, joint_epochs=2, n_restarts=2, prior_steps=20, n_hidden=8, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="time", training=quick)
    return cells


def log2_paths(times):
    """Group, time, gene: in group 0 nothing, in group 1 as the names say, in group 2 with the signs reversed."""
    x = np.asarray(times, dtype=float) / 2
    shape = np.stack([0 * x, x, 1.5 - 6 * (x - 0.5) ** 2, 3 * x], axis=-1)
    slope = np.stack([0 * x, 0 * x + 1, -12 * (x - 0.5), 0 * x + 3], axis=-1) / 2
    sign = np.array([0.0, 1.0, -1.0])[:, None, None]
    return sign * shape, sign * slope


@pytest.fixture
def known(fitted, monkeypatch):
    """A fit whose paths are known, with draws that scatter about them as much as each gene's name says."""

    def gene_paths(adata, key, times, columns):
        log2, slope = log2_paths(times)
        # Draws differ in slope: the ends of the course scatter by this many doublings.
        scatter = np.array([0.01, 0.05, 0.1, 4.0])
        tilt = np.random.default_rng(0).standard_normal((400, 1, 1, 4)) * scatter
        x = np.asarray(times, dtype=float)[:, None] / 2
        mean, drawn = 2.0**log2, 2.0 ** (log2 + tilt * x)
        velocity = lambda mean, slope: np.log(2) * mean * slope
        draws = GenePaths(drawn, velocity(drawn, slope + tilt / 2))
        return FoundGenes(mean[..., columns], velocity(mean, slope)[..., columns], (draws,))

    monkeypatch.setattr(dp.get, "gene_paths", gene_paths)
    cells = fitted.copy()
    cells.obsm["dynvae_groups"] = np.eye(3)[cells.obs["group"].cat.codes]
    return cells


def of_group(table, group):
    return table[table["group"] == group].set_index("gene")


def ranked(known, **asked):
    """As the paths are, without a pseudocount."""
    return dp.tl.rank_dynamic_genes(known, **{"pseudocount": 0, **asked})


# --- known paths -------------------------------------------------------------------------------------------------------


def test_the_largest_change_is_the_way_from_trough_to_peak(known):
    rises = of_group(ranked(known), "1")
    assert rises.loc["doubles", "log2fc"] == pytest.approx(1)
    assert rises.loc["doubles", ["from_time", "to_time"]].tolist() == [0, 2]
    # Up in the first half by 1.5 and down in the second: the first of two equal changes counts.
    assert rises.loc["rises_and_falls", "log2fc"] == pytest.approx(1.5)
    assert rises.loc["rises_and_falls", ["from_time", "to_time"]].tolist() == [0, 1]


def test_genes_that_fall_have_negative_changes(known):
    falls = of_group(ranked(known), "2")
    assert falls.loc["doubles", "log2fc"] == pytest.approx(-1)
    assert falls.loc["doubles", "velocity"] < 0


def test_what_is_sure_goes_before_what_is_large(known):
    rises = of_group(ranked(known), "1")
    assert rises.loc["noisy", "log2fc"] > rises.loc["rises_and_falls", "log2fc"]
    assert rises["rank"].to_dict() == {"rises_and_falls": 1, "doubles": 2, "flat": 3, "noisy": 4}


def test_bands_of_changes_are_those_of_the_draws(known):
    rises = of_group(ranked(known), "1")
    half = (rises["log2fc_upper"] - rises["log2fc_lower"]) / 2
    # 400 draws know a standard deviation to 1/sqrt(800).
    assert half["doubles"] == pytest.approx(1.645 * 0.05, rel=0.12)
    assert half["noisy"] == pytest.approx(1.645 * 4, rel=0.12)
    # Half the course has half the scatter.
    assert half["rises_and_falls"] == pytest.approx(1.645 * 0.1 / 2, rel=0.12)
    assert rises.loc["flat", "log2fc_lower"] <= 0 <= rises.loc["flat", "log2fc_upper"]


def test_at_a_time_genes_are_ranked_by_their_relative_rate(known):
    table = ranked(known, times=[1.0, 2.0], groups="1")
    assert table["time"].unique().tolist() == [1, 2]
    middle, end = (table[table["time"] == t].set_index("gene") for t in (1, 2))
    # At the peak the slope is zero; at the end it is the steepest of those that are sure.
    assert middle.loc["rises_and_falls", "velocity"] == pytest.approx(0, abs=1e-9)
    assert middle.loc["doubles", "rank"] == 1
    assert end.loc["rises_and_falls", "rank"] == 1
    assert end.loc["doubles", "velocity"] == pytest.approx(np.log(2) * 2 * 0.5)
    assert end.loc["doubles", "mean"] == pytest.approx(2)


def test_each_group_is_ranked_by_itself_and_cut_off(known):
    table = ranked(known, groups=[2, "1"], n_genes=2)
    assert table.groupby("group", observed=True)["rank"].apply(list).to_dict() == {"1": [1, 2], "2": [1, 2]}
    assert table["group"].tolist() == ["2", "2", "1", "1"]


def test_the_time_of_fastest_change_is_where_the_relative_slope_is_largest(known):
    rises = of_group(ranked(known), "1")
    assert rises.loc["rises_and_falls", "time"] in (0, 2)


# --- genes that were hardly seen ---------------------------------------------------------------------------------------


@pytest.fixture
def rare(known):
    """The same paths, where "doubles" has three counts, all in cells of the last snapshot, and "noisy" none."""
    cells = known.copy()
    counts = np.asarray(cells.X).copy()
    counts[:, [1, 3]] = 0
    last = np.flatnonzero(cells.obs["time"] == 2)
    counts[last[:3], 1] = 1
    cells.X = counts
    return cells


def test_a_pseudocount_is_one_count_among_those_of_the_group_in_a_snapshot(known):
    groups = known.obsm["dynvae_groups"] / known.obsm["dynvae_groups"].sum(1, keepdims=True)
    depth = groups.T @ known.X.sum(1) / 3
    for pseudocount in (1.0, 5.0):
        rises = of_group(dp.tl.rank_dynamic_genes(known, pseudocount=pseudocount), "1")
        added = 1e4 * pseudocount / depth[1]
        assert rises.loc["doubles", "log2fc"] == pytest.approx(np.log2((2 + added) / (1 + added)), rel=1e-4)
    few, more = (of_group(dp.tl.rank_dynamic_genes(known, pseudocount=p), "1") for p in (1, 5))
    assert more.loc["doubles", "log2fc"] < few.loc["doubles", "log2fc"] < 1
    width = lambda table: table["log2fc_upper"] - table["log2fc_lower"]
    assert (width(more) <= width(few)).all()


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_size_factors_does_not_change_what_a_pseudocount_adds(known, unit):
    known.uns["dynvae"]["params"]["size_factor_key"] = "size"
    changes = []
    for factor in (1.0, unit):
        known.obs["size"] = factor * np.asarray(known.X.sum(1)).ravel()
        changes.append(dp.tl.rank_dynamic_genes(known).sort_values(["group", "gene"])["observed_log2fc"].to_numpy())
    np.testing.assert_allclose(*changes, rtol=1e-6)


def test_rates_at_a_time_are_relative_to_the_mean_with_the_pseudocount(fitted):
    groups = fitted.obsm["dynvae_groups"] / fitted.obsm["dynvae_groups"].sum(1, keepdims=True)
    for pseudocount in (0, 100):
        table = dp.tl.rank_dynamic_genes(fitted, times=[0.5, 2], pseudocount=pseudocount)
        added = pd.Series(1e4 * pseudocount / (groups.T @ np.asarray(fitted.X.sum(1)).ravel() / 3), index=list("012"))
        rate = table["velocity"].abs() / (table["mean"] + table["group"].astype(str).map(added))
        for _, own in rate.groupby([table["group"].astype(str), table["time"]]):
            assert own.is_monotonic_decreasing


def test_genes_seen_too_rarely_are_left_out(rare):
    genes = lambda **asked: set(dp.tl.rank_dynamic_genes(rare, groups="1", **asked)["gene"])
    assert genes() == {"flat", "doubles", "rises_and_falls"}
    assert genes(min_cells=4) == {"flat", "rises_and_falls"}
    assert genes(min_cells=None, min_counts=4) == {"flat", "rises_and_falls"}
    assert genes(min_cells=None) == set(GENES)
    assert genes(min_cells=0, min_counts=3) == {"flat", "doubles", "rises_and_falls"}


def test_limits_that_no_gene_passes_are_named(rare):
    with pytest.raises(ValueError, match=r"min_cells=1000 cells .*the most are 180 cells.* Lower the limits"):
        dp.tl.rank_dynamic_genes(rare, min_cells=1000)


def test_the_observed_change_and_the_cells_stand_beside_the_fitted_change(known):
    table = of_group(dp.tl.rank_dynamic_genes(known, pseudocount=2), "1")
    groups = known.obsm["dynvae_groups"] / known.obsm["dynvae_groups"].sum(1, keepdims=True)
    seen = np.asarray(known.X) > 0
    added = 2e4 / (groups[:, 1] @ known.X.sum(1) / 3)
    observed = dp.get.observed_genes(known, GENES).set_index(["group", "gene", "time"])["mean"]
    for g, gene in enumerate(GENES):
        row = table.loc[gene]
        assert row["n_cells"] == seen[:, g].sum()
        assert row["n_cells_group"] == pytest.approx(groups[seen[:, g], 1].sum(), rel=1e-5)
        if gene != "flat":
            first, last = (observed["1", gene, round(row[end])] for end in ("from_time", "to_time"))
            assert row["observed_log2fc"] == pytest.approx(np.log2((last + added) / (first + added)), rel=1e-4)


def test_a_change_within_one_snapshot_has_no_observed_counterpart(known, monkeypatch):
    near = dp.get.gene_paths

    def early(adata, key, times, columns):
        # All that happens does so before the middle of the first interval.
        return near(adata, key, 2 * np.clip(np.asarray(times) / 0.4, 0, 1), columns)

    monkeypatch.setattr(dp.get, "gene_paths", early)
    rises = of_group(dp.tl.rank_dynamic_genes(known), "1")
    assert np.isnan(rises.loc["doubles", "observed_log2fc"])


# --- a fit ---------------------------------------------------------------------------------------------------------------


def test_without_a_bootstrap_genes_are_ranked_by_the_change_itself(fitted):
    table = dp.tl.rank_dynamic_genes(fitted)
    assert list(table.columns) == [
        *("group", "rank", "gene", "log2fc", "log2fc_lower", "log2fc_upper"),
        *("observed_log2fc", "n_cells", "n_cells_group", "from_time", "to_time"),
        *("time", "mean", "velocity", "velocity_lower", "velocity_upper", "extrapolated"),
    ]
    bounds = ["log2fc_lower", "log2fc_upper", "velocity_lower", "velocity_upper"]
    assert table[bounds].isna().all(axis=None)
    for _, own in table.groupby("group", observed=True):
        assert own["log2fc"].abs().is_monotonic_decreasing
        assert own["rank"].tolist() == [1, 2, 3, 4]


def test_the_table_agrees_with_the_paths_of_the_genes(fitted):
    cells = fitted.copy()
    dp.tl.bootstrap(cells, n_bootstrap=3)
    ranked = dp.tl.rank_dynamic_genes(cells, times=[0.5, 3]).sort_values(["group", "gene", "time"], ignore_index=True)
    paths = dp.get.gene_trajectories(cells, GENES, times=[0.5, 3])
    paths = paths.astype({"gene": str}).sort_values(["group", "gene", "time"], ignore_index=True)
    columns = ["mean", "velocity", "velocity_lower", "velocity_upper", "extrapolated"]
    pd.testing.assert_frame_equal(ranked[columns], paths[columns], rtol=1e-3)
    assert ranked["extrapolated"].tolist() == [False, True] * 12


def test_nothing_is_written(fitted):
    before = fitted.copy()
    dp.tl.rank_dynamic_genes(fitted)
    assert set(fitted.uns) == set(before.uns)
    assert set(fitted.uns["dynvae"]) == set(before.uns["dynvae"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"groups": ["0", "5"]}, r"groups must be among .* 0, 1, 2; '5' is none of them"),
        ({"groups": []}, r"groups must be among .* 0, 1, 2; none was given"),
        ({"n_genes": 0}, "n_genes must be at least 1"),
        ({"pseudocount": -1}, "pseudocount must not be negative; it is -1"),
        ({"level": 90}, "level must lie between 0 and 1"),
        ({"times": [-1]}, r"first snapshot \(0\)"),
    ],
)
def test_what_cannot_be_ranked_is_named(fitted, asked, message):
    with pytest.raises(ValueError, match=message):
        dp.tl.rank_dynamic_genes(fitted, **asked)


def test_a_fit_without_a_decoder_is_named(fitted):
    cells = fitted.copy()
    quick = Training(n_restarts=1, prior_steps=5, progress=False)
    dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", training=quick, key_added="rep")
    for ask in (dp.tl.rank_dynamic_genes, lambda adata, key: dp.get.gene_trajectories(adata, GENES, key)):
        with pytest.raises(ValueError, match=r"'rep' was made with use_rep='Z_true' and decodes no genes"):
            ask(cells, key="rep")


def test_unknown_genes_are_named(fitted):
    with pytest.raises(KeyError, match="var_names has no 'double'; close to it: 'doubles'"):
        dp.get.gene_trajectories(fitted, ["flat", "double"])
