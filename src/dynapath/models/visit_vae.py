"""Visits -> latent states; baseline -> individual parameters of the dynamics; latent states -> items.

    mu_k, s_k = encoder(x_k)          each visit by itself, measured or not given as a mask; s_k a log-variance, at most 0
    theta     = network(baseline)     a shifted sigmoid times a trainable scale: a soft prior for small rates
    m_k       = all visits pooled through the flow of theta (dynamics.smooth)
    x_k       ~ decoder(z_k),  z_k ~ N(m_k, exp s_k)

Terms of the loss, each a mean over a subject's visits: `reconstruction`, `kl` of N(m, exp s) to N(0, I), `prediction` (minus
log-likelihood of each visit given the one before: its mu carried by the flow), `consistency` (squared gap of mu and m) and
`decoder` (sum of squares of the decoder's weights).
Source: Hackenberg et al., Biometrical Journal 2022 and arXiv:2311.16286; `prediction` and `gls` are ours, they identify what
smoothing alone does not. All parameters have a leading axis of members: restarts, computed together.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dynapath.dynamics.nonlinear import LearnedField
from dynapath.dynamics.smooth import Estimator, Smoothed, pool

TERMS = ("reconstruction", "kl", "prediction", "consistency", "decoder")


class Batch(NamedTuple):
    """Visits of some subjects, as tensors; `values` where not observed are their means."""

    times: Float[Tensor, "subject visit"]
    values: Float[Tensor, "subject visit item"]
    observed: Bool[Tensor, "subject visit item"]
    present: Bool[Tensor, "subject visit"]
    baseline: Float[Tensor, "subject covariate"]

    def take(self, rows: Tensor) -> Batch:
        """Some of the subjects, with as many visits as they have."""
        width = max(int(self.present[rows].sum(1).max()), 1)
        return Batch(*(x[rows, :width] for x in self[:4]), self.baseline[rows])


class Linears(nn.Module):
    """One affine map for each member."""

    def __init__(self, n_members: int, n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = True) -> None:
        super().__init__()
        bound = math.sqrt(6 / (n_in + n_out)) if n_in + n_out else 0.0
        self.weight = nn.Parameter(bound * (2 * torch.rand(n_members, n_in, n_out, generator=generator) - 1))
        self.bias = nn.Parameter(torch.zeros(n_members, 1, n_out)) if bias else None

    def forward(self, x: Float[Tensor, "#member ... n_in"]) -> Float[Tensor, "member ... n_out"]:
        """Axes between the member and the features are kept."""
        rows = x.flatten(1, -2)
        y = (
            rows @ self.weight
            if self.bias is None
            else torch.baddbmm(self.bias, rows.expand(len(self.weight), -1, -1), self.weight)
        )
        return y.reshape(y.shape[0], *x.shape[1:-1], y.shape[-1])


class Encoder(nn.Module):
    """Mean and log-variance of the state at a visit."""

    def __init__(self, n_members: int, n_items: int, n_hidden: int, n_latent: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = Linears(n_members, 2 * n_items, n_hidden, generator)
        self.mean = Linears(n_members, n_hidden, n_latent, generator)
        self.log_var = Linears(n_members, n_hidden, n_latent, generator)

    def forward(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Items that were not measured enter as their mean, with a flag."""
        h = 1 + torch.tanh(self.hidden(torch.cat([values, (~observed).to(values.dtype)], -1)[None]))
        return self.mean(h), -torch.relu(self.log_var(h))


class Decoder(nn.Module):
    """Means of the items (logits of Bernoulli items), and a variance for each."""

    def __init__(
        self, n_members: int, n_items: int, n_latent: int, generator: torch.Generator, *, linear: bool
    ) -> None:
        super().__init__()
        self.hidden = None if linear else Linears(n_members, n_latent, n_items, generator)
        self.mean = Linears(n_members, n_latent if linear else n_items, n_items, generator)
        self.log_var = nn.Parameter(torch.zeros(n_members, 1, 1, n_items))

    def forward(self, z: Float[Tensor, "member ... latent"]) -> Float[Tensor, "member ... item"]:
        """Means, or logits."""
        return self.mean(z if self.hidden is None else torch.tanh(self.hidden(z)))

    def size(self) -> Float[Tensor, " member"]:
        """Sum of squares of all weights."""
        maps = [self.mean] if self.hidden is None else [self.hidden, self.mean]
        return sum(p.square().sum((1, 2)) for linear in maps for p in (linear.weight, linear.bias))


class BaselineNetwork(nn.Module):
    """Parameters of the dynamics from the baseline: scale * (sigmoid(.) - 1/2) + shift, scale 1 and shift 0 at the start."""

    def __init__(
        self, n_members: int, n_covariates: int, n_params: int, generator: torch.Generator, *, width: float
    ) -> None:
        super().__init__()
        n_hidden = max(n_covariates, 1)
        self.width = width
        self.hidden = Linears(n_members, n_covariates, n_hidden, generator)
        self.out = Linears(n_members, n_hidden, n_params, generator)
        self.scale = nn.Parameter(torch.ones(n_members, 1, n_params))
        self.shift = nn.Parameter(torch.zeros(n_members, 1, n_params))

    def forward(self, baseline: Float[Tensor, "subject covariate"]) -> Float[Tensor, "member subject param"]:
        """Numbers within about (-width, width) at the start."""
        raw = 2 * self.width * (torch.sigmoid(self.out(torch.tanh(self.hidden(baseline[None])))) - 0.5)
        return self.scale * raw + self.shift


class VisitVAE(nn.Module):
    """Visits of subjects as one latent trajectory each.

    Parameters
    ----------
    n_items, n_covariates
        Columns of the visits and of the baseline, on a scale of about 1.
    dynamics
        What moves the states, see :mod:`dynapath.dynamics`; times of the visits are in its unit.
    bernoulli
        Which items are 0 or 1.
    estimator
        How the visits of a subject make one trajectory.
    linear_decoder
        Items linear in the states (logits, for Bernoulli items); else one hidden layer.
    n_members
        Restarts.
    width
        Parameters start in (-width, width): .5 and .25 are published.
    generator
        Source of the starting weights.
    """

    def __init__(
        self,
        n_items: int,
        n_covariates: int,
        dynamics: Any,
        *,
        bernoulli: Bool[Tensor, " item"] | None = None,
        estimator: Estimator = "gls",
        linear_decoder: bool = False,
        n_members: int = 1,
        width: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        d = dynamics.n_latent
        self.dynamics, self.estimator, self.n_members = dynamics, estimator, n_members
        self.encoder = Encoder(n_members, n_items, max(n_items, 2 * d), d, generator)
        self.decoder = Decoder(n_members, n_items, d, generator, linear=linear_decoder)
        self.network = BaselineNetwork(n_members, n_covariates, dynamics.n_params, generator, width=width)
        none = torch.zeros(n_items, dtype=torch.bool)
        self.register_buffer("bernoulli", none if bernoulli is None else bernoulli)

    def theta(self, baseline: Float[Tensor, "subject covariate"]) -> Float[Tensor, "member subject param"]:
        """Parameters of the dynamics of subjects with this baseline."""
        raw = self.network(baseline)
        return self.dynamics.from_unit(raw) if hasattr(self.dynamics, "from_unit") else raw

    def smooth(self, batch: Batch, mean: Tensor, log_var: Tensor, theta: Tensor) -> Smoothed:
        """All visits of a subject, pooled."""
        return pool(self.dynamics, self.estimator, batch.times, mean, (-log_var).exp(), theta, batch.present)

    def log_prob(self, z: Tensor, values: Tensor, observed: Tensor) -> Float[Tensor, "member subject visit"]:
        """Log-likelihood of what was measured at visits in states `z`."""
        out = self.decoder(z)
        # A NaN would pass the mask below in the gradient.
        values = torch.where(observed, values, 0.0)
        log_var = self.decoder.log_var.clamp(-9, 7)
        gaussian = -0.5 * ((values - out).square() * (-log_var).exp() + log_var + math.log(2 * math.pi))
        if self.bernoulli.any():
            binary = -binary_cross_entropy_with_logits(out, values.expand_as(out), reduction="none")
            gaussian = torch.where(self.bernoulli, binary, gaussian)
        return torch.where(observed, gaussian, 0.0).sum(-1)

    def forward(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Float[Tensor, "member subject"]]:
        """The terms of the loss; `noise` (member, subject, visit, latent) draws the states, None takes their means."""
        mean, log_var = self.encoder(batch.values, batch.observed)
        theta = self.theta(batch.baseline)
        smooth = self.smooth(batch, mean, log_var, theta).mean
        z = smooth if noise is None else smooth + (log_var / 2).exp() * noise
        present = batch.present.to(mean.dtype)
        n = present.sum(-1).clamp_min(1)
        each = lambda x: (x * present).sum(-1) / n
        terms = {
            "reconstruction": -each(self.log_prob(z, batch.values, batch.observed)),
            "kl": each(0.5 * (log_var.exp() + smooth.square() - 1 - log_var).sum(-1)),
            "prediction": torch.zeros_like(theta[..., 0]),
            "consistency": each((mean - smooth).square().sum(-1)),
            "decoder": self.decoder.size()[:, None].expand(theta.shape[:2]),
        }
        if batch.times.shape[1] > 1:
            gaps = batch.times[:, 1:] - batch.times[:, :-1]
            ahead = self.dynamics.flow(gaps, mean[:, :, :-1], theta.unsqueeze(-2))
            follows = present[:, 1:]
            log_prob = self.log_prob(ahead, batch.values[:, 1:], batch.observed[:, 1:])
            terms["prediction"] = -(log_prob * follows).sum(-1) / follows.sum(-1).clamp_min(1)
        return terms

    def of_members(self) -> dict[str, nn.Parameter]:
        """Parameters that each member has of its own; those of dynamics made elsewhere are shared by all."""
        own = isinstance(self.dynamics, LearnedField)
        return {name: p for name, p in self.named_parameters() if own or not name.startswith("dynamics.")}

    @torch.no_grad()
    def replace_members(self, which: Bool[Tensor, " member"], *, by: int) -> None:
        """Copy one member over others."""
        for p in self.of_members().values():
            p[which] = p[by].clone()

    def parts(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the baseline network, which is held back by weight decay, and all others."""
        network = list(self.network.parameters())
        own = {id(p) for p in network}
        return network, [p for p in self.parameters() if id(p) not in own]
