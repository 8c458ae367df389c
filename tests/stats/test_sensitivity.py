"""dp.stats.sensitivity: the same model with other covariates."""

from __future__ import annotations

import numpy as np
import pytest

import dynapath as dp
from dynapath.read.panel import read_panel
from dynapath.stats.increment.fit import fit
from dynapath.stats.sensitivity import sensitivity


@pytest.fixture(scope="module")
def panel():
    panel = dp.datasets.simulate_reports(12, 60, silent=0)
    panel.layers["twice"] = 2 * panel.layers["incidence"]
    panel.layers["other"] = np.random.default_rng(0).gamma(2, 1, panel.shape)
    return panel


def estimates(table, alternative):
    return table[table["alternative"] == alternative].pivot(index="unit", columns="coefficient", values="estimate")


def test_each_alternative_is_a_fit_of_its_own(panel):
    table = sensitivity(panel, ["incidence", "other"])
    for name in ("incidence", "other"):
        result = fit(read_panel(panel, covariates=name), se="hessian")
        rows = table[table["alternative"] == name]
        np.testing.assert_array_equal(rows["estimate"], result.params.ravel())
        np.testing.assert_array_equal(rows["se"], result.se.ravel())
        assert list(rows["status"][::3]) == list(result.status)
        assert set(rows["layer"]) == {"", name}


def test_twice_the_covariate_has_half_the_coefficient_and_changes_nothing_else(panel):
    table = sensitivity(panel, {"as it is": "incidence", "doubled": "twice"}, fit_kwargs={"pooling": "global"})
    one, two = estimates(table, "as it is"), estimates(table, "doubled")
    np.testing.assert_allclose(two["covariate"], one["covariate"] / 2, rtol=1e-6)
    np.testing.assert_allclose(two[["intercept", "state"]], one[["intercept", "state"]], rtol=1e-6)


def test_an_alternative_may_have_several_layers(panel):
    table = sensitivity(panel, [["incidence", "other"], "other"])
    assert list(table["alternative"].cat.categories) == ["incidence + other", "other"]
    assert list(table["coefficient"].unique()) == ["intercept", "state", "covariate", "covariate_2"]


def test_nothing_is_written(panel):
    before = set(panel.obsm), set(panel.layers), set(panel.uns)
    sensitivity(panel, ["incidence"])
    assert (set(panel.obsm), set(panel.layers), set(panel.uns)) == before


@pytest.mark.parametrize("alternatives", [[], "incidence", {}])
def test_alternatives_must_be_a_list(panel, alternatives):
    with pytest.raises(ValueError, match="must list at least one layer"):
        sensitivity(panel, alternatives)


def test_an_unknown_layer_is_named(panel):
    with pytest.raises(KeyError, match="'cases'"):
        sensitivity(panel, ["incidence", "cases"])
