import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dynapath as dp


@pytest.fixture
def chosen(adata):
    """A fit that looks as if 2 to 5 groups had been tried, and 3 taken although 4 has the lowest BIC."""
    delta = np.array([1234.4, 1.5, 0.0, 40.0])
    columns = dict.fromkeys(["log_likelihood", "bic", "smallest_share", "agreement", "restart_gap"], np.zeros(4))
    columns |= {"n_groups": np.arange(2, 6), "n_parameters": np.arange(4), "n_cells": np.full(4, 300)}
    columns |= {"delta_bic": delta, "chosen": np.arange(4) == 1, "eligible": np.arange(4) < 3}
    adata.uns["dynvae"]["n_groups"] = columns
    return adata


def line(ax, name):
    return next(artist.get_xydata() for artist in ax.lines if artist.get_gid() == name)


def test_the_curve_is_the_criterion_above_its_lowest_value(chosen):
    ax = dp.pl.n_groups(chosen, show=False)
    assert isinstance(ax, Axes)
    np.testing.assert_allclose(line(ax, "bic"), [(2, 1234.4), (3, 1.5), (4, 0), (5, 40)])
    assert [text.get_text() for text in ax.texts] == ["1,234", "chosen\n1.5", "0", "40"]
    assert ax.get_xticks().tolist() == [2, 3, 4, 5]


def test_the_chosen_number_is_marked_and_no_other(chosen):
    ax = dp.pl.n_groups(chosen, show=False)
    np.testing.assert_allclose(line(ax, "chosen"), [(3, 1.5)])
    assert line(ax, "others")[:, 0].tolist() == [2, 4]


def test_numbers_with_a_tiny_group_are_crossed_out_and_explained(chosen):
    ax = dp.pl.n_groups(chosen, show=False)
    assert line(ax, "tiny group")[:, 0].tolist() == [5]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a group below 2% of the cells"]
    chosen.uns["dynvae"]["n_groups"]["eligible"] = np.ones(4, dtype=bool)
    assert dp.pl.n_groups(chosen, show=False).get_legend() is None


def test_show_return_fig_and_ax_decide_what_comes_back(chosen, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert dp.pl.n_groups(chosen, show=True) is None
    assert isinstance(dp.pl.n_groups(chosen, return_fig=True), Figure)
    given = plt.figure().add_subplot()
    assert dp.pl.n_groups(chosen, ax=given, show=False) is given
    with pytest.raises((ValueError, TypeError), match="ax"):
        dp.pl.n_groups(chosen, ax=plt.subplots(1, 2)[1], show=False)


@pytest.mark.parametrize(
    ("key", "message"), [("other", "no fit under 'other'"), ("dynvae", r"was given n_groups=3.*n_groups='auto'")]
)
def test_a_fit_without_a_choice_is_named_and_no_figure_is_left(adata, key, message):
    with pytest.raises(KeyError, match=message):
        dp.pl.n_groups(adata, key=key, show=False)
    assert not plt.get_fignums()
