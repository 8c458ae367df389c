"""What was observed of the groups, counted again by hand."""

import warnings

import numpy as np
import pytest

import dynapath as dp

KEY = "dynvae"


@pytest.fixture(scope="module")
def fitted():
    adata = dp.datasets.simulate_snapshots("rotating", n_cells=20, n_genes=30, times=(0, 1, 3))
    quick = dp.models.Training(n_restarts=2, prior_steps=30, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a fit has something to say, which is not the point here
        dp.tl.fit_dynamic_vae(adata, time_key="time", use_rep="Z_true", training=quick)
    return adata


@pytest.fixture
def adata(fitted):
    return fitted.copy()


@pytest.fixture
def counted(adata):
    """As a fit with counts looks to a reader."""
    adata.uns[KEY] = {**adata.uns[KEY], "kind": "dynamic_vae"}
    adata.uns[KEY]["params"] = {**adata.uns[KEY]["params"], "genes": adata.var_names.tolist()}
    return adata


def certain(adata, groups):
    adata.obsm[f"{KEY}_groups"] = np.eye(3, dtype=np.float32)[groups]


def test_observed_proportions_sum_to_one_in_every_snapshot(adata):
    table = dp.get.observed_proportions(adata)
    assert len(table) == 3 * 3
    np.testing.assert_allclose(table.groupby("time")["proportion"].sum(), 1)
    assert set(table["n_cells"]) == {60}


def test_for_certain_cells_observed_proportions_are_counts_of_cells(adata):
    groups = np.random.default_rng(0).integers(2, size=adata.n_obs)
    certain(adata, groups)
    table = dp.get.observed_proportions(adata, level=0.5).set_index(["group", "time"])
    for time in (0, 1, 3):
        here = groups[adata.obs["time"] == time]
        for k in range(3):
            assert table.loc[(str(k), time), "proportion"] == pytest.approx((here == k).mean())
    # No cell was seen, which does not prove that there is none.
    assert (table.loc["2", "upper"] > 0).all()
    assert (table["lower"] <= table["proportion"]).all()
    assert (table["proportion"] <= table["upper"]).all()


def test_for_certain_cells_observed_genes_are_means_of_normalised_counts(counted):
    groups = np.random.default_rng(0).integers(3, size=counted.n_obs)
    certain(counted, groups)
    genes = list(counted.var_names[[4, 2]])
    table = dp.get.observed_genes(counted, genes).set_index(["group", "gene", "time"])
    counts = counted.X.toarray()
    normalised = 1e4 * counts / counts.sum(1, keepdims=True)
    for (group, gene, time), row in table.iterrows():
        cells = (groups == int(group)) & (counted.obs["time"] == time)
        column = counted.var_names.get_loc(gene)
        assert row["mean"] == pytest.approx(normalised[cells.to_numpy(), column].mean(), rel=1e-5)
        assert row["n_cells"] == pytest.approx(cells.sum())


def test_genes_keep_the_order_asked_for_and_repeats_are_dropped(counted):
    b, a = counted.var_names[[7, 3]]
    assert dp.get.observed_genes(counted, [b, a, b])["gene"].cat.categories.tolist() == [b, a]
    assert dp.get.observed_genes(counted, a)["gene"].cat.categories.tolist() == [a]


def test_size_factors_take_the_place_of_total_counts(counted):
    counted.obs["size"] = np.linspace(1, 2, counted.n_obs)
    plain = dp.get.observed_genes(counted, counted.var_names[0])
    counted.uns[KEY]["params"]["size_factor_key"] = "size"
    certain(counted, np.zeros(counted.n_obs, dtype=int))
    table = dp.get.observed_genes(counted, counted.var_names[0])
    first = table[(table["group"] == "0") & (table["time"] == 0)]["mean"].item()
    cells = (counted.obs["time"] == 0).to_numpy()
    by_hand = 1e4 * counted.X[cells, 0].toarray().ravel() / counted.obs["size"][cells]
    assert first == pytest.approx(by_hand.mean(), rel=1e-5)
    assert len(table) == len(plain)


def test_a_subset_of_cells_is_counted_alone(counted):
    half = counted[::2]
    assert set(dp.get.observed_proportions(half)["n_cells"]) == {30}
    assert dp.get.observed_genes(half, half.var_names[0])["n_cells"].sum() == pytest.approx(half.n_obs)


def test_an_unknown_gene_is_answered_with_names_like_it(counted):
    counted.var_names = [f"Gene{i}" for i in range(30)]
    counted.uns[KEY]["params"]["genes"] = counted.var_names.tolist()
    with pytest.raises(KeyError, match=r"var_names has no 'gene12'; close to it: 'Gene12'.*2 of 3 genes are unknown"):
        dp.get.observed_genes(counted, ["Gene1", "gene12", "Xist"])
    with pytest.raises(KeyError, match="'Xist'; no name is close to it"):
        dp.get.observed_genes(counted, "Xist")
    with pytest.raises(ValueError, match="genes is empty"):
        dp.get.observed_genes(counted, [])


def test_a_fit_without_counts_says_so(adata):
    with pytest.raises(ValueError, match="made with use_rep='Z_true' and knows no counts"):
        dp.get.observed_genes(adata, adata.var_names[0])
