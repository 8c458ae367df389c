"""The end of training: what is linear in the decoder's logits, brought to its optimum with the states held fixed.

First by stochastic steps, all genes together:

    logits = W z + shift + V h(z),    minimise  -mean_i log p(x_i | z_i) + decoder_ridge ||V||^2  over W, shift, V and theta

with z drawn from q(z | x). Given the states this is a penalised regression of the counts. Joint training stops short of its
optimum: the network still holds slopes that the linear path should, which costs nothing among the training cells and much
beyond them, where a network levels off.

Then the slopes W_g of each gene, and its level, are estimated once more, under a prior that the genes have in common,

    W_g ~ N(0, T),    T = mean_g (W_g W_g' + C_g)

with C_g the posterior covariance of the slopes of gene g (empirical Bayes by expectation and maximisation). A gene is known
to as many nats as it has counts, sum_i m_ig / (1 + m_ig / theta_g): with hundreds of counts it keeps its slopes, with three
it takes most of them from the prior, which is that it does not change. Without it a few counts fit any slope, and an
exponential of that is a mean many times too high somewhere else. T is free of the scale and the rotation of the latent space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ._dynamic_module import DynamicVAEModule

_LR = 0.02
_BATCH = 1024

# Rounds in which the prior is renewed, and steps of scoring in each.
_ROUNDS = 8
_SCORINGS = 3
# States drawn, so that few cells do not each stand for one draw; of more cells than this, as many as there are.
_STATES = 2048
# The level of a gene is known beforehand to a factor of about e^3: what a silent gene stays at.
_PRECISION_OF_LEVEL = 0.1
# Of logits (root mean square over the cells), in one step.
_LONGEST_STEP = 2.0
# Of logits over the cells: a prior that had none would hold every gene for good.
_SMALLEST_SD = 1e-3
_SMALLEST = 1e-30


def finish_decoder(
    module: DynamicVAEModule,
    counts: csr_matrix,
    mean: Float[Tensor, "cell latent"],
    variance: Float[Tensor, "cell latent"],
    size: Float[Tensor, " cell"],
    batch: Int[Tensor, " cell"],
    *,
    n_steps: int,
) -> None:
    """In place, by Adam on random cells with steps that end at zero. Decoders without a linear path are left alone.

    Parameters
    ----------
    mean, variance
        Of q(z | x).
    size
        Library size or size factor of each cell.
    """
    decoder = module.decoder
    if decoder.skip is None or not n_steps:
        return
    to_logits = decoder.px_scale_decoder[0]
    parameters = [*decoder.linear_parameters(), to_logits.weight, to_logits.bias]
    if module.gene_likelihood != "poisson":
        parameters.append(module.px_r)
    device = to_logits.weight.device
    optimizer = torch.optim.Adam(parameters, lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
    # Encoding has left the module in evaluation mode: nothing drops out.
    for _ in range(n_steps):
        rows = torch.randperm(len(mean))[:_BATCH]
        x = torch.as_tensor(counts[rows.numpy()].toarray(), dtype=torch.float32, device=device)
        z = (mean[rows] + variance[rows].sqrt() * torch.randn(len(rows), mean.shape[1])).to(device)
        log_size = size[rows, None].log().to(device)
        px = module.generative(z, log_size, batch[rows, None].to(device), size_factor=log_size)["px"]
        loss = module.decoder_ridge * decoder.nonlinearity() - px.log_prob(x).sum(-1).mean()
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()


@torch.no_grad()
def shrink_slopes(
    module: DynamicVAEModule,
    counts: csr_matrix,
    mean: Float[Tensor, "cell latent"],
    variance: Float[Tensor, "cell latent"],
    size: Float[Tensor, " cell"],
    batch: Int[Tensor, " cell"],
) -> None:
    """In place: levels and slopes of the decoder's linear path under the prior that is given at the head of this file.

    The network and the shifts of the batches stay as they are, and so does the dispersion. Decoders without a linear path
    are left alone.

    Parameters
    ----------
    mean, variance, size, batch
        As in `finish_decoder`.
    """
    decoder = module.decoder
    if decoder.skip is None:
        return
    repeats = max(1, _STATES // len(mean))
    cells = _Cells(
        module,
        counts,
        [mean + variance.sqrt() * torch.randn(mean.shape) for _ in range(repeats)],
        size,
        batch,
    )
    bias, slopes = decoder.px_scale_decoder[0].bias, decoder.skip.weight
    trained = torch.cat([bias[:, None], slopes], dim=1).cpu().double()
    best, least = trained, _least_prior(mean)
    prior = best[:, 1:].mT @ best[:, 1:] / len(best)
    for _ in range(_ROUNDS):
        level = torch.full((1, 1), _PRECISION_OF_LEVEL, dtype=torch.float64)
        precision = torch.block_diag(level, torch.linalg.inv(prior + least))
        best, covariance = _scored(cells, best, trained, precision)
        prior = (best[:, 1:, None] * best[:, None, 1:] + covariance[:, 1:, 1:]).mean(0)
    bias.copy_(best[:, 0])
    slopes.copy_(best[:, 1:])


def _least_prior(mean: Tensor) -> Tensor:
    """Covariance of slopes that move logits by next to nothing, whatever the scale of the latent space."""
    d = mean.shape[1]
    spread = torch.cov(mean.double().mT).reshape(d, d)
    # A dimension that training has not used may be constant.
    return _SMALLEST_SD**2 * torch.linalg.inv(spread + 1e-12 * torch.eye(d, dtype=spread.dtype))


def _scored(cells: _Cells, start: Tensor, trained: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Level and slopes (gene, 1 + latent) after some steps of Fisher scoring, and their posterior covariances."""
    totals = cells.log_totals(start)
    best, step = start, torch.zeros_like(start)
    value = torch.full((len(start),), -torch.inf, dtype=torch.float64)
    covariance = torch.zeros(len(start), *precision.shape, dtype=torch.float64)
    for _ in range(_SCORINGS + 1):
        trial = best + step
        likelihood, score, information = cells.regressions(trial, totals)
        # Levels are held where training left them, slopes at zero.
        off = torch.cat([trial[:, :1] - trained[:, :1], trial[:, 1:]], dim=1)
        reached = likelihood - (off @ precision * off).sum(-1) / 2
        better = reached >= value
        inverse = torch.linalg.inv(information + precision)
        whole = (inverse @ (score - off @ precision).unsqueeze(-1)).squeeze(-1)
        length = (whole @ cells.squares * whole).sum(-1, keepdim=True).sqrt()
        whole = whole * (_LONGEST_STEP / length.clamp_min(_LONGEST_STEP))
        best, value = torch.where(better[:, None], trial, best), torch.where(better, reached, value)
        covariance = torch.where(better[:, None, None], inverse, covariance)
        # Where a step went too far, half of it.
        step = torch.where(better[:, None], whole, step / 2)
    return best, covariance


@dataclass(frozen=True)
class _Cells:
    """Counts and states as the data of one regression a gene: on (1, z), with all else in the logits as it is."""

    module: DynamicVAEModule
    counts: csr_matrix
    states: list[Tensor]  # draws of all cells
    size: Tensor
    batch: Tensor

    @property
    def squares(self) -> Tensor:
        """Mean of the design's outer products (1 + latent, 1 + latent)."""
        design = torch.cat([torch.ones(len(self.states[0]), 1), self.states[0]], dim=1).double()
        return design.mT @ design / len(design)

    def log_totals(self, coefficients: Tensor) -> list[Tensor]:
        """Of each draw, the logarithm (cell, 1) by which a softmax divides; zero where the logits are not normalised."""
        if self.module.use_size_factor_key:
            return [torch.zeros(len(z), 1, dtype=torch.float64) for z in self.states]
        return [
            torch.cat([self._logits(z, part, coefficients)[1].logsumexp(-1, keepdim=True) for part in self._parts()])
            for z in self.states
        ]

    def regressions(self, coefficients: Tensor, totals: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each gene, log likelihood (gene,), score (gene, 1 + latent) and Fisher information, means over the draws."""
        n_genes, q = coefficients.shape
        value, score = torch.zeros(n_genes).double(), torch.zeros(n_genes, q).double()
        information = torch.zeros(n_genes, q * q).double()
        theta = self.module.px_r.detach().cpu().double().exp()
        theta = theta if theta.dim() == 1 else theta.mean(-1)
        for z, total in zip(self.states, totals, strict=True):
            for part in self._parts():
                design, logits, zero = self._logits(z, part, coefficients)
                x = torch.as_tensor(self.counts[part].toarray()).double()
                logits = logits - total[part]
                size = self.size[part, None].double()
                if self.module.use_size_factor_key:
                    scale = softplus(logits)
                    # Of log m in the logit: 1 where the softplus is an exponential.
                    slope = logits.sigmoid() / scale.clamp_min(_SMALLEST)
                else:
                    scale, slope = logits.exp(), torch.ones(())
                m = (size * scale).clamp_min(_SMALLEST)
                if self.module.gene_likelihood == "poisson":
                    damping, log_prob = torch.ones(()), x * m.log() - m
                else:
                    damping, log_prob = (
                        1 + m / theta,
                        x * m.log() - (x + theta) * (theta + m).log() + theta * theta.log(),
                    )
                counted = torch.ones(())
                if zero is not None:
                    # A zero may be one that the gene is not to blame for.
                    silent = x == 0
                    whole = torch.where(
                        silent, torch.logaddexp(logsigmoid(zero), logsigmoid(-zero) + log_prob), log_prob
                    )
                    counted = torch.where(silent, (logsigmoid(-zero) + log_prob - whole).exp(), 1.0)
                    log_prob = whole
                value += log_prob.sum(0)
                score += (counted * slope * (x - m) / damping).mT @ design
                squares = (design.unsqueeze(-1) * design.unsqueeze(-2)).flatten(1)
                information += (counted * slope.square() * m / damping).mT @ squares
        n = len(self.states)
        return value / n, score / n, information.reshape(n_genes, q, q) / n

    def _parts(self) -> list[slice]:
        return [slice(start, start + _BATCH) for start in range(0, len(self.size), _BATCH)]

    def _logits(self, z: Tensor, part: slice, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The design (cell, 1 + latent), logits (cell, gene) by these coefficients, and those of structural zeros."""
        decoder = self.module.decoder
        to_logits = decoder.px_scale_decoder[0]
        device = to_logits.weight.device
        batch = self.batch[part, None].to(device)
        hidden = decoder.px_decoder(z[part].float().to(device), batch)
        network = hidden @ to_logits.weight.mT
        if decoder.shift is not None:
            network = network + decoder.shift(batch.long().squeeze(-1))
        design = torch.cat([torch.ones(len(z[part]), 1), z[part]], dim=1).double()
        zero = decoder.px_dropout_decoder(hidden).cpu().double() if decoder.zero_inflated else None
        return design, network.cpu().double() + design @ coefficients.mT, zero
