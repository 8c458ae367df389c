"""Estimation from small, longitudinal data: any differentiable program, and panels of daily reports."""

from ._estimate import estimate
from ._fit_increment import fit_increment
from ._fit_latent_dynamics import fit_latent_dynamics
from ._impute_increment import impute_increment
from ._predict_increment import predict_increment
from ._predict_visits import predict_visits
from .backtest import backtest, compare_forecasts, temporal_subsets
from .censoring import censoring_study, mask_reports
from .increment.bootstrap import Bootstrap
from .landmark_forecast import compare_landmarks, landmark_forecast
from .profile import profile_loss
from .program.observed import where_observed
from .program.result import Estimate, Prediction
from .registry.training import Schedule
from .sensitivity import sensitivity

__all__ = [
    "Bootstrap",
    "Estimate",
    "Prediction",
    "Schedule",
    "backtest",
    "censoring_study",
    "compare_forecasts",
    "compare_landmarks",
    "estimate",
    "fit_increment",
    "fit_latent_dynamics",
    "impute_increment",
    "landmark_forecast",
    "mask_reports",
    "predict_increment",
    "predict_visits",
    "profile_loss",
    "sensitivity",
    "temporal_subsets",
    "where_observed",
]
