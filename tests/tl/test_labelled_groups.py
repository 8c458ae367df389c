"""Labels name groups, and labelled cells are in theirs; groups may be renamed."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import dynapath as dp
from dynapath.datasets import simulate_snapshots
from dynapath.models import Training

QUICK = Training(static_epochs=2, joint_epochs=2, n_restarts=1, prior_steps=10, n_hidden=8, progress=False)
NAMES = ["HSC", "Mono", "Neu"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def cells():
    """Three groups that cross, every second cell labelled, and a representation."""
    cells = simulate_snapshots("crossing", n_cells=20, n_genes=20, times=(0, 0.3, 0.6, 1))
    cells = cells[:, np.asarray(cells.X.sum(0)).ravel() > 0].copy()
    names = np.array(NAMES)[cells.obs["group"].astype(str).astype(int) % 3]
    cells.obs["all"] = pd.Categorical(names)
    cells.obs["some"] = pd.Categorical(np.where(np.arange(cells.n_obs) % 2, names, None), categories=NAMES[::-1])
    return cells


def fit(cells, **kwargs):
    return dp.tl.fit_dynamic_vae(cells, **{"time_key": "time", "training": QUICK, "copy": True, **kwargs})


WAYS = {
    "counts": {},
    "representation": {"use_rep": "Z_true"},
    "members": {"n_members": 2},
}


@pytest.fixture(scope="module")
def labelled(cells):
    return {way: fit(cells, labels_key="some", **kwargs) for way, kwargs in WAYS.items()}


@pytest.mark.parametrize("way", WAYS)
def test_labelled_cells_are_their_label_with_probability_one(labelled, way):
    fitted = labelled[way]
    known = fitted.obs["some"].notna().to_numpy()
    obs = fitted.obs[known]
    assert (obs["dynvae_group"].astype(str) == obs["some"].astype(str)).all()
    assert (obs["dynvae_prob"] == 1).all()
    assert not obs["dynvae_undetermined"].any()
    codes = fitted.obs["dynvae_group"].cat.codes.to_numpy()[known]
    np.testing.assert_array_equal(fitted.obsm["dynvae_groups"][known], np.eye(3)[codes])
    # The others are inferred.
    assert (fitted.obs["dynvae_prob"][~known] < 1).any()


@pytest.mark.parametrize("kwargs", [{}, {"use_rep": "Z_true"}], ids=["counts", "representation"])
def test_with_all_cells_labelled_groups_are_the_labels_at_every_time(cells, kwargs):
    fitted = fit(cells, labels_key="all", **kwargs)
    assert (fitted.obs["dynvae_group"].astype(str) == fitted.obs["all"].astype(str)).all()
    assert not fitted.obs["dynvae_undetermined"].any()
    shares = dp.get.observed_proportions(fitted).set_index(["group", "time"])["proportion"]
    np.testing.assert_allclose(shares, 1 / 3, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_groups_have_the_names_of_the_labels_in_sorted_order(labelled, way, tmp_path):
    fitted = labelled[way]
    fitted.write_h5ad(tmp_path / "fit.h5ad")
    for found in (fitted, ad.read_h5ad(tmp_path / "fit.h5ad"), fitted[fitted.obs["dynvae_group"] != "HSC"].copy()):
        assert list(map(str, found.uns["dynvae"]["groups"])) == NAMES
        assert dp.get.trajectories(found)["group"].cat.categories.tolist() == NAMES
        assert dp.get.observed_proportions(found)["group"].cat.categories.tolist() == NAMES
    assert fitted.obs["dynvae_group"].cat.categories.tolist() == NAMES


def test_further_groups_have_numbers(cells):
    fitted = fit(cells, labels_key="some", n_groups=5, use_rep="Z_true")
    assert fitted.obs["dynvae_group"].cat.categories.tolist() == [*NAMES, "3", "4"]
    numbered = cells.copy()
    numbered.obs["some"] = numbered.obs["some"].cat.rename_categories({"HSC": "3", "Mono": "1", "Neu": "2"})
    fitted = fit(numbered, labels_key="some", n_groups=4, use_rep="Z_true")
    assert fitted.obs["dynvae_group"].cat.categories.tolist() == ["1", "2", "3", "group 3"]


def test_without_labels_groups_have_numbers(cells):
    fitted = fit(cells, use_rep="Z_true")
    assert fitted.obs["dynvae_group"].cat.categories.tolist() == ["0", "1", "2"]
    assert list(fitted.uns["dynvae"]["groups"]) == ["0", "1", "2"]


def all_names(fitted):
    """Groups as every function names them."""
    genes = list(fitted.var_names[:2])
    return {
        "trajectories": dp.get.trajectories(fitted)["group"],
        "proportions": dp.get.observed_proportions(fitted)["group"],
        "genes": dp.get.gene_trajectories(fitted, genes)["group"],
        "observed": dp.get.observed_genes(fitted, genes)["group"],
        "rank": dp.tl.rank_dynamic_genes(fitted)["group"],
        "predicted": dp.tl.predict_cells(fitted, times=0.5, n_cells=30).obs["dynvae_group"],
    }


def test_every_function_names_groups_alike_and_by_their_new_names(labelled):
    fitted = labelled["members"].copy()
    for name, groups in all_names(fitted).items():
        assert groups.cat.categories.tolist() == NAMES, name
    paths = dp.get.trajectories(fitted)
    # Renamed, shuffled, and one of them under the old name of another.
    new = {"HSC": "Mono", "Mono": "monocyte", "Neu": "neutrophil"}
    renamed = fitted.obs["dynvae_group"].cat.rename_categories(new)
    fitted.obs["dynvae_group"] = renamed.cat.reorder_categories(["neutrophil", "Mono", "monocyte"])
    expected = ["Mono", "monocyte", "neutrophil"]
    for name, groups in all_names(fitted).items():
        assert groups.cat.categories.tolist() == expected, name
    again = dp.get.trajectories(fitted)
    np.testing.assert_array_equal(again["mean"], paths["mean"])
    assert (again["group"].astype(str) == paths["group"].astype(str).map(new)).all()
    table = dp.tl.rank_dynamic_genes(fitted, groups=["neutrophil"], n_genes=2)
    assert table["group"].astype(str).unique().tolist() == ["neutrophil"]
    # The fit's own name is understood where no other group has taken it.
    pd.testing.assert_frame_equal(dp.tl.rank_dynamic_genes(fitted, groups="Neu", n_genes=2), table)
    with pytest.raises(
        ValueError, match="groups must be among .* Mono, monocyte, neutrophil; 'nobody' is none of them"
    ):
        dp.tl.rank_dynamic_genes(fitted, groups="nobody")


def test_figures_name_and_choose_groups_by_their_new_names(labelled):
    import matplotlib.pyplot as plt

    fitted = labelled["counts"].copy()
    fitted.obs["dynvae_group"] = fitted.obs["dynvae_group"].cat.rename_categories({"Neu": "neutrophil"})
    for draw in (dp.pl.latent_trajectories, dp.pl.group_proportions, dp.pl.latent_phase):
        axes = np.ravel(draw(fitted, groups=["neutrophil", "HSC"], show=False))
        figure = axes[0].figure
        said = (
            [text.get_text() for ax in figure.axes for text in ax.get_legend().get_texts() if ax.get_legend()]
            if any(ax.get_legend() for ax in figure.axes)
            else [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        )
        assert {"neutrophil", "HSC"} <= set(said)
        assert "Mono" not in said
        plt.close(figure)


def test_cells_put_into_groups_of_another_kind_do_not_rename_groups(labelled):
    fitted = labelled["counts"].copy()
    fitted.obs["dynvae_group"] = pd.Categorical(np.where(fitted.obs["dynvae_group"] == "HSC", "stem", "mature"))
    assert dp.get.trajectories(fitted)["group"].cat.categories.tolist() == NAMES


def test_an_older_fit_without_names_has_numbers(labelled):
    fitted = labelled["counts"].copy()
    del fitted.uns["dynvae"]["groups"]
    fitted.obs["dynvae_group"] = fitted.obs["dynvae_group"].cat.rename_categories(["0", "1", "2"])
    assert dp.get.trajectories(fitted)["group"].cat.categories.tolist() == ["0", "1", "2"]
    assert dp.tl.rank_dynamic_genes(fitted, groups=[2], n_genes=1)["group"].astype(str).tolist() == ["2"]
