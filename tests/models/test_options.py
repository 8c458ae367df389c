import pytest

from dynapath.models import Prior, Training


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ridge": -1.0}, r"Prior\(ridge=...\) must not be negative; it is -1.0"),
        ({"growth_penalty": -0.1}, "growth_penalty"),
        ({"floor": 0.0}, "floor.*positive"),
        ({"share": "B"}, "share.*'none', 'A' or 'A,b'; it is 'B'"),
    ],
)
def test_priors_that_make_no_sense_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Prior(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"static_epochs": 0}, "static_epochs.*at least 1, or None; it is 0"),
        ({"joint_epochs": 0}, "joint_epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"n_restarts": 0}, "n_restarts"),
        ({"lr": 0.0}, "lr.*positive"),
        ({"dropout_rate": 1.0}, r"dropout_rate.*\[0, 1\)"),
        ({"decoder": "linear"}, "decoder.*'skip' or 'mlp'"),
    ],
)
def test_training_options_that_make_no_sense_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Training(**kwargs)
