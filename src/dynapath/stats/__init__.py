"""Estimation from small, longitudinal data: panels of daily reports."""

from .backtest import backtest, compare_forecasts, temporal_subsets
from .profile import profile_loss
from .sensitivity import sensitivity

__all__ = [
    "backtest",
    "compare_forecasts",
    "profile_loss",
    "sensitivity",
    "temporal_subsets",
]
