import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import dynapath as dp


@pytest.fixture
def trained(adata):
    """Two stages of four and eight epochs, with a steep start."""
    target, elbo = np.array([9.0, 2, 1.5, 1]), np.array([900.0, 400, 120, 110, 105, 102, 101, 100])
    first = pd.DataFrame({"phase": "encoder", "loss": 50 * target, "target": target})
    second = pd.DataFrame({"phase": "decoder", "loss": elbo, "elbo": elbo, "elbo_validation": elbo + 5})
    adata.uns["vae"] = {"kind": "count_vae", "history": pd.concat([first, second], ignore_index=True)}
    return adata


def lines(ax, name):
    return [artist.get_xydata() for artist in ax.lines if artist.get_gid() == name]


def test_there_is_a_panel_for_every_term_by_its_name(trained):
    panels = dp.pl.history(trained, key="vae", show=False)
    assert [ax.get_title(loc="left") for ax in panels] == ["loss", "target", "elbo"]


def test_phases_follow_each_other_without_being_joined(trained):
    loss, target, elbo = dp.pl.history(trained, key="vae", show=False)
    first, second = lines(loss, "loss")
    assert first[:, 0].tolist() == [1, 2, 3, 4]
    assert second[:, 0].tolist() == list(range(5, 13))
    assert len(lines(target, "target")) == len(lines(elbo, "elbo")) == 1
    assert {ax.get_xlim() for ax in (loss, target, elbo)} == {(0, 13)}


def test_validation_cells_have_a_dashed_line_of_their_own(trained):
    *_, elbo = dp.pl.history(trained, key="vae", show=False)
    (train,), (validation,) = lines(elbo, "elbo"), lines(elbo, "elbo_validation")
    np.testing.assert_allclose(validation[:, 1], train[:, 1] + 5)
    labels = [text.get_text() for text in elbo.figure.legends[0].get_texts()]
    assert labels == ["encoder", "decoder", "validation cells"]


def test_the_steep_start_does_not_flatten_the_rest(trained):
    *_, elbo = dp.pl.history(trained, key="vae", show=False)
    low, high = elbo.get_ylim()
    assert low < 100
    assert 125 <= high < 135


def test_terms_can_be_chosen_and_unknown_ones_are_named(trained):
    (panel,) = dp.pl.history(trained, key="vae", terms="elbo", show=False)
    assert panel.get_title(loc="left") == "elbo"
    with pytest.raises(ValueError, match="terms must be among loss, target, elbo; 'kl' is not"):
        dp.pl.history(trained, key="vae", terms=["kl"], show=False)


def test_it_draws_on_given_axes_and_hands_the_figure_over(trained):
    _, axes = plt.subplots(1, 3)
    assert list(dp.pl.history(trained, key="vae", axes=axes, show=False)) == list(axes)
    assert isinstance(dp.pl.history(trained, key="vae", return_fig=True), Figure)


def test_dynamic_fits_have_a_history_too(adata):
    (panel,) = dp.pl.history(adata, key="dynvae", show=False)
    np.testing.assert_allclose(lines(panel, "loss")[0][:, 1], dp.get.history(adata)["loss"])


def test_without_a_fit_the_error_says_so(adata):
    with pytest.raises(KeyError, match="uns has no fit under 'vae'; fits present: dynvae"):
        dp.pl.history(adata, key="vae", show=False)
