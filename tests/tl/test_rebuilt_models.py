"""Models that are built again read the AnnData that their methods are given as the fit read its own."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import dynapath as dp
from dynapath.models import Training

QUICK = Training(static_epochs=2, joint_epochs=2, n_restarts=1, prior_steps=5, n_hidden=8, progress=False)

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

COLUMNS = {"layer": "counts", "batch_key": "donor", "labels_key": "type", "size_factor_key": "depth"}


@pytest.fixture(scope="module")
def fitted(simulated):
    """Counts in a layer, batches that are numbers, size factors, and labels of some cells; three fits."""
    cells = simulated.copy()
    cells.obs = cells.obs.rename(columns={"batch": "donor", "size": "depth", "time": "day", "group": "cluster"})
    cells.obs["donor"] = cells.obs["donor"].astype(str).factorize(sort=True)[0] + 7
    cells.layers["counts"] = cells.X.copy()
    # What a reader that knows internal names alone would take instead.
    cells.obs["time"], cells.obs["batch"], cells.obs["size_factor"] = "no time", "no batch", -1.0
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    dp.tl.fit_dynamic_vae(cells, time_key="day", training=QUICK, n_members=2, **COLUMNS)
    cells.obs["type"] = cells.obs["type"].astype(object).where(cells.obs["type"].notna(), None)
    static = {**COLUMNS, "labels_key": "cluster"}
    static |= {"n_latent": 2, "max_epochs": 2, "dispersion": "gene-label", "train_kwargs": {"progress": False}}
    dp.tl.fit_vae(cells, **static)
    del static["size_factor_key"]
    dp.tl.fit_vae(cells, key_added="linear", decoder="linear", **static)
    return cells


def rebuilt(cells, key):
    model = dp.get.model(cells, key)
    return model.members[0] if key == "dynvae" else model


@pytest.fixture(scope="module")
def models(fitted):
    return {key: rebuilt(fitted, key) for key in ("dynvae", "vae", "linear")}


KEYS = pytest.mark.parametrize("key", ["dynvae", "vae", "linear"])


@KEYS
def test_cells_are_encoded_as_the_fit_encoded_them(fitted, models, key):
    expected = fitted.obsm[f"X_{key}"]
    for cells, rows in ((None, slice(None)), (fitted, slice(None)), (fitted[40:90], slice(40, 90))):
        np.testing.assert_allclose(models[key].get_latent_representation(cells), expected[rows], atol=1e-6)
    # A few cells, of one batch, with unused categories dropped.
    some = fitted[fitted.obs["donor"] == 8][::7].copy()
    np.testing.assert_allclose(models[key].get_latent_representation(some), some.obsm[f"X_{key}"], atol=1e-6)


@KEYS
def test_what_is_decoded_for_the_same_cells_given_again_is_the_same(fitted, models, key):
    one, two = (models[key].get_normalized_expression(cells, n_samples=20) for cells in (None, fitted))
    assert one.index.equals(two.index)
    np.testing.assert_allclose(two.mean(), one.mean(), rtol=0.05)
    one, two = (float(models[key].get_elbo(cells)) for cells in (None, fitted))
    assert two == pytest.approx(one, rel=0.01)


@KEYS
def test_the_given_data_are_left_alone(fitted, models, key):
    cells = fitted[:50].copy()
    before = cells.copy()
    models[key].get_latent_representation(cells)
    models[key].differential_abundance(cells, sample_key="cluster")
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert set(cells.uns) == set(before.uns)
    assert set(cells.obsm) == set(before.obsm)


@KEYS
@pytest.mark.parametrize(("groupby", "first"), [("cluster", "0"), ("donor", 7), ("type", "t1")])
def test_groups_of_the_data_are_compared(fitted, models, key, groupby, first):
    for cells in (None, fitted):
        table = models[key].differential_expression(cells, groupby=groupby, group1=[first], silent=True)
        assert len(table) == fitted.n_vars
        # Raw means are those of the counts.
        counts = np.asarray(fitted[(fitted.obs[groupby] == first).to_numpy()].layers["counts"].mean(0))
        np.testing.assert_allclose(table.loc[fitted.var_names, "raw_mean1"], counts.ravel(), rtol=1e-5)


@KEYS
def test_only_the_last_data_that_were_read_are_kept(fitted, models, key):
    for start in range(0, 90, 30):
        models[key].get_latent_representation(fitted[start : start + 30])
    assert len(models[key]._per_instance_manager_store[models[key].id]) == 2


@KEYS
def test_other_genes_and_missing_columns_are_refused_by_their_names(fitted, models, key):
    with pytest.raises(ValueError, match=f"The fit '{key}' used .* order or number differs"):
        models[key].get_latent_representation(fitted[:, ::-1])
    cells = fitted[:50].copy()
    cells.obs["donor"] = 99
    with pytest.raises(ValueError, match=r"obs\['donor'\] has .*not seen: 99; it knows 7, 8"):
        models[key].get_latent_representation(cells)
    del cells.obs["donor"]
    with pytest.raises(KeyError, match="no column 'donor' .batch_key.; present"):
        models[key].get_latent_representation(cells)
    cells = fitted[:50].copy()
    del cells.layers["counts"]
    with pytest.raises(KeyError, match="layers has no 'counts'"):
        models[key].get_latent_representation(cells)


def test_members_read_as_the_first_does(fitted):
    members = dp.get.model(fitted, "dynvae").members
    for member in members:
        one, two = (member.get_latent_representation(cells) for cells in (None, fitted[::3]))
        np.testing.assert_allclose(one[::3], two, atol=1e-6)
