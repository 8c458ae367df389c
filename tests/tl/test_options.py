"""Options of fits of cells are used, or refused by their name."""

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback

import dynapath as dp

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"likelihood": "garbage"}, "likelihood='garbage' is about counts"),
        ({"likelihood": "zinb"}, "likelihood='zinb' is about counts"),
        ({"max_epochs": -3}, "max_epochs=-3 is about counts"),
        ({"max_epochs": 30}, "max_epochs=30 is about counts"),
        ({"layer": "nowhere"}, "layer='nowhere' is about counts"),
        ({"batch_key": "nowhere"}, "batch_key='nowhere' is about counts"),
        ({"batch_key": "batch"}, "batch_key='batch' is about counts"),
        ({"size_factor_key": "size"}, "size_factor_key='size' is about counts"),
        ({"train_kwargs": {"accelerator": "cpu"}}, "train_kwargs=.* is about counts"),
        ({"n_latent": 7}, r"n_latent=7, but obsm\['Z_true'\] has 2 columns"),
    ],
    ids=lambda given: str(given)[:30],
)
def test_what_is_about_counts_is_refused_by_name_with_a_representation(cells, quick, given, said):
    with pytest.raises(ValueError, match=said):
        dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", training=quick, **given)
    assert "dynvae" not in cells.uns


def test_labels_that_are_not_there_are_refused_with_a_representation(cells, quick):
    with pytest.raises(KeyError, match="no column 'nowhere' .labels_key.; present"):
        dp.tl.fit_dynamic_vae(cells, time_key="time", use_rep="Z_true", training=quick, labels_key="nowhere")


def test_labels_that_the_fit_has_not_seen_are_named_and_not_used(cells, quick):
    dp.tl.fit_dynamic_vae(cells, time_key="time", labels_key="type", training=quick)
    cells.obs["type"] = cells.obs["type"].cat.rename_categories({"t1": "monocyte"})
    with pytest.warns(
        UserWarning, match=r"obs\['type'\] has labels the fit has not seen: monocyte; it knows t0, t1, t2"
    ):
        known = dp.get.model(cells).known_groups()
    assert (known[(cells.obs["type"] == "monocyte").to_numpy()] == -1).all()
    assert (known[(cells.obs["type"] == "t2").to_numpy()] == 2).all()


class Steps(Callback):
    """Step sizes of every epoch."""

    def __init__(self):
        self.of = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.of.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def fit_dynamic(cells, quick, **train_kwargs):
    dp.tl.fit_dynamic_vae(cells, time_key="time", training=quick, max_epochs=5, train_kwargs=train_kwargs)


def fit_static(cells, quick, **train_kwargs):
    dp.tl.fit_vae(cells, n_latent=2, max_epochs=5, train_kwargs={"progress": False, **train_kwargs})


FITS = pytest.mark.parametrize("fit", [fit_dynamic, fit_static])
# No change is large enough to be no plateau.
FLAT = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e9, "lr_factor": 0.5}


@FITS
@pytest.mark.parametrize(
    "given", [{"train_size": 0.8, "plan_kwargs": FLAT}, {"plan_kwargs": {**FLAT, "lr_scheduler_metric": "elbo_train"}}]
)
def test_steps_are_reduced_on_a_plateau(cells, quick, fit, given):
    seen = Steps()
    fit(cells, quick, callbacks=[seen], **given)
    ratio = np.array(seen.of[1:5]) / np.array(seen.of[:4])
    # The first epoch is the best so far.
    np.testing.assert_allclose(ratio, [[1.0] * ratio.shape[1]] + [[0.5] * ratio.shape[1]] * 3)


@FITS
def test_a_plateau_of_held_out_cells_needs_such_cells(cells, quick, fit):
    before = set(cells.uns)
    with pytest.raises(
        ValueError, match="reduce_lr_on_plateau watches 'elbo_validation', but all cells are trained on"
    ):
        fit(cells, quick, plan_kwargs=FLAT)
    assert set(cells.uns) == before
