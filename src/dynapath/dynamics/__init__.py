"""What moves: exact linear dynamics, and mixtures of them. Tensors in, tensors out."""

from .alternatives import Alternatives, refit_alternatives, swapped_links
from .bootstrap import bootstrap_mixture
from .choose_groups import GroupChoice, choose_n_groups
from .fit_mixture import MixtureFit, fit_mixture, refit_proportions
from .group_dynamics import GroupDynamics, TimeScale, Trajectories
from .increments import IncrementDynamics
from .linear import flow, moments, noise_covariance, propagator, velocity
from .mixture import LinearMixture, Marginals, marginal_log_prob
from .project_velocity import project_velocity
from .trajectory import solve

__all__ = [
    "Alternatives",
    "GroupChoice",
    "GroupDynamics",
    "IncrementDynamics",
    "LinearMixture",
    "Marginals",
    "MixtureFit",
    "TimeScale",
    "Trajectories",
    "bootstrap_mixture",
    "choose_n_groups",
    "fit_mixture",
    "flow",
    "marginal_log_prob",
    "moments",
    "noise_covariance",
    "project_velocity",
    "propagator",
    "refit_alternatives",
    "refit_proportions",
    "solve",
    "swapped_links",
    "velocity",
]
