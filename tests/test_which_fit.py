"""Every reader of fits finds the one that is meant: the only one there is, or it says which there are."""

import inspect
import warnings

import numpy as np
import pytest

import dynapath as dp

NAMESPACES = [dp.get, dp.pl, dp.tl, dp.stats]


@pytest.fixture(scope="module")
def cells():
    """A fit of moving groups and a linear count VAE, neither under its standard name."""
    cells = dp.datasets.simulate_snapshots("crossing", n_cells=15, n_genes=20)
    quick = dp.models.Training(n_restarts=1, prior_steps=20, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", training=quick, n_groups=3, key_added="moving")
        dp.tl.fit_vae(cells, n_latent=2, decoder="linear", max_epochs=1, key_added="lin")
    return cells


@pytest.fixture(scope="module")
def panel():
    panel = dp.datasets.simulate_reports(n_units=5, n_days=20)
    dp.stats.fit_increment(panel, covariates="incidence", key_added="daily", progress=False)
    return panel


@pytest.fixture(scope="module")
def visits():
    visits = dp.datasets.simulate_registry("linear2", n_subjects=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dp.stats.fit_latent_dynamics(
            visits, subject_key="patient", time_key="time", key_added="course", n_restarts=1,
            schedule=dp.stats.Schedule(n_epochs=2),
        )  # fmt: skip
    return visits


def test_every_reader_looks_for_the_fit_by_itself():
    for namespace in NAMESPACES:
        for name in namespace.__all__:
            function = getattr(namespace, name)
            if inspect.isfunction(function):
                found = inspect.signature(function).parameters
                for argument in {"key", "keys"} & set(found):
                    assert found[argument].default is None, f"{namespace.__name__}.{name}"
    assert inspect.signature(dp.stats.Estimate.from_adata).parameters["key"].default is None


def test_the_only_fit_of_its_kind_is_the_one_that_is_meant(cells, panel, visits):
    assert isinstance(dp.get.model(panel), dp.dynamics.IncrementDynamics)
    assert type(dp.get.model(visits)).__name__ == "VisitModel"
    assert dp.get.dynamics(cells).n_groups == 3
    assert dp.get.loadings(cells).columns.tolist() == ["lin1", "lin2"]
    assert dp.get.restarts(cells).equals(dp.get.restarts(cells, "moving"))
    assert dp.get.increment_params(panel).equals(dp.get.increment_params(panel, "daily"))
    assert dp.get.parameters(visits).equals(dp.get.parameters(visits, "course"))
    assert dp.stats.predict_increment(panel).equals(dp.stats.predict_increment(panel, key="daily"))
    assert len(dp.tl.sample_prior(cells, n_cells=3)) == 3
    dp.pl.latent_phase(cells, show=False)
    dp.pl.loadings(cells, show=False)
    dp.pl.increment_params(panel, show=False)
    dp.pl.increment_trajectory(panel, units=panel.obs_names[:1], show=False)
    dp.pl.latent_trajectories(visits, show=False)
    alone = cells.copy()
    del alone.uns["moving"]
    assert type(dp.get.model(alone)).__name__ == "LinearCountVAE"
    assert len(dp.get.history(alone)) == len(dp.get.history(alone, "lin")) == 1
    dp.pl.history(alone, show=False)


def test_several_fits_are_listed(cells):
    for read in (dp.get.model, dp.get.history, dp.pl.history):
        listed = r"several fits: 'moving' \(dp.tl.fit_dynamic_vae\), 'lin' \(dp.tl.fit_vae\)\. Say which with key="
        with pytest.raises(KeyError, match=listed):
            read(cells)


def test_of_several_fits_of_a_kind_the_standard_name_is_meant(cells):
    two = cells.copy()
    del two.uns["lin"]
    two.uns["dynvae"] = two.uns["moving"]
    assert dp.get.history(two).equals(dp.get.history(two, "moving"))
    two.uns["later"] = two.uns.pop("dynvae")
    with pytest.raises(KeyError, match="several fits: 'moving'.*'later'"):
        dp.get.trajectories(two)


@pytest.mark.parametrize(
    ("read", "verb"),
    [
        (dp.get.history, r"dp\.tl\.fit_dynamic_vae or dp\.tl\.fit_vae"),
        (dp.get.restarts, r"dp\.tl\.fit_dynamic_vae"),
        (dp.pl.history, r"dp\.tl\.fit_dynamic_vae or dp\.tl\.fit_vae"),
        (dp.pl.loadings, r"dp\.tl\.fit_vae"),
        (dp.pl.latent_phase, r"dp\.tl\.fit_dynamic_vae"),
        (dp.get.parameters, r"dp\.stats\.fit_latent_dynamics"),
    ],
)
def test_fits_of_another_kind_are_named(panel, read, verb):
    with pytest.raises(
        KeyError, match=rf"uns has no fit of {verb}; fits of another kind: 'daily' of dp\.stats\.fit_inc"
    ):
        read(panel)
    with pytest.raises(KeyError, match=rf"uns\['daily'\] is a fit of dp\.stats\.fit_increment, not of {verb}"):
        read(panel, key="daily")


def test_without_any_fit_it_is_said_what_to_run():
    empty = dp.datasets.simulate_reports(n_units=2, n_days=5)
    with pytest.raises(KeyError, match=r"there is no fit in this AnnData\. Run dp\.stats\.fit_increment"):
        dp.get.increment_params(empty)
    with pytest.raises(
        KeyError, match=r"no fit under 'mine'; there is no fit.*Run dp\.tl\.fit_vae\(.*key_added='mine'"
    ):
        dp.get.loadings(empty, "mine")


def test_an_estimate_is_found_too():
    from anndata import AnnData

    adata = AnnData(np.random.default_rng(0).normal(size=(4, 5)))
    dp.stats.estimate(lambda p, y: y - p["a"], adata, params="a", kind="residuals", slots={"y": "X"}, key_added="mean")
    assert list(dp.stats.Estimate.from_adata(adata).params) == ["a"]
    with pytest.raises(KeyError, match="'mean' holds the parameters of a program"):
        dp.get.model(adata)
