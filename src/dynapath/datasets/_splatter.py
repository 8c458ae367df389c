"""Counts of cells from expected expression: the gamma-Poisson model of Splatter (Zappia et al. 2017).

The model, its parameters and their defaults follow the description in doi:10.1186/s13059-017-1305-0. Axes are
(cell, gene); expected counts are in molecules per cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer


@dataclass(frozen=True)
class Splat:
    """Splatter's default parameters; only `de_prob` differs (.3 per latent dimension, not .1 per group)."""

    mean_shape: float = 0.6
    mean_rate: float = 0.3
    out_prob: float = 0.05
    out_loc: float = 4.0
    out_scale: float = 0.5
    lib_loc: float = 11.0  # for `lib_genes` genes
    lib_scale: float = 0.2
    lib_genes: int = 10_000
    de_prob: float = 0.3
    de_down_prob: float = 0.5
    de_loc: float = 0.1
    de_scale: float = 0.4
    nonlinear_prob: float = 0.1
    bcv_common: float = 0.1
    bcv_df: float = 60.0
    batch_loc: float = 0.1
    batch_scale: float = 0.1
    batch_down_prob: float = 0.5

    def log_library_mean(self, n_genes: int) -> float:
        """Mean of the log library, lower for panels of few genes, which else would be absurdly deep."""
        return self.lib_loc + float(np.log(n_genes / self.lib_genes))


def log_factors(
    rng: np.random.Generator, shape: tuple[int, ...], *, prob: float, down_prob: float, loc: float, scale: float
) -> Float[np.ndarray, "..."]:
    """Logarithms of multiplicative factors: 0, or with probability `prob` up (> 0) or down (< 0).

    A factor is log-normal (`loc`, `scale`), inverted with probability `down_prob`. Where the draw is below 1 the
    direction is flipped once more, so that "up" always means above 1: the log factor is +-|N(loc, scale)|.
    """
    affected = rng.random(shape) < prob
    down = rng.random(shape) < down_prob
    size = np.abs(rng.normal(loc, scale, shape))
    return np.where(affected, np.where(down, -size, size), 0.0)


def base_means(
    rng: np.random.Generator, n_genes: int, splat: Splat
) -> tuple[Float[np.ndarray, " gene"], Bool[np.ndarray, " gene"]]:
    """Gamma-distributed mean of each gene, and which of them are outliers.

    The mean of an outlier is a log-normal multiple of the median over all genes.
    """
    mean = rng.gamma(splat.mean_shape, 1 / splat.mean_rate, n_genes)
    log_factor = log_factors(
        rng, (n_genes,), prob=splat.out_prob, down_prob=0.0, loc=splat.out_loc, scale=splat.out_scale
    )
    outlier = log_factor != 0
    return np.where(outlier, np.median(mean) * np.exp(log_factor), mean), outlier


def nonlinear_response(eta: Float[np.ndarray, "cell gene"]) -> Float[np.ndarray, "cell gene"]:
    """Response of a gene that saturates upwards and turns back: 1.5 tanh(eta) - .3 eta^2."""
    return 1.5 * np.tanh(eta) - 0.3 * eta**2


def squared_bcv(
    expected: Float[np.ndarray, "*cells gene"], chi2_factor: Float[np.ndarray, " gene"], common: float
) -> Float[np.ndarray, "*cells gene"]:
    """Squared biological coefficient of variation, (common + 1/sqrt(lambda0))^2 df/chi2_df.

    `chi2_factor` is df/chi2_df with one draw for each gene. Counts have variance lambda0 + lambda0^2 BCV^2.
    """
    return (common + 1 / np.sqrt(expected)) ** 2 * chi2_factor


def draw_counts(
    rng: np.random.Generator, expected: Float[np.ndarray, "*cells gene"], bcv2: Float[np.ndarray, "*cells gene"]
) -> tuple[Integer[np.ndarray, "*cells gene"], Float[np.ndarray, "*cells gene"]]:
    """Counts ~ Poisson(rate) with rate ~ Gamma(mean lambda0, squared coefficient of variation BCV^2); both returned."""
    rate = rng.standard_gamma(1 / bcv2)
    rate *= expected * bcv2
    return rng.poisson(rate), rate


def keep_probability(rate: Float[np.ndarray, "..."], *, mid: float, shape: float) -> Float[np.ndarray, "..."]:
    """Probability that a count survives dropout, 1 - 1/(1 + exp(-shape (log rate - mid)))."""
    # = 1/(1 + exp(shape (log rate - mid))); the power saves the logarithm of a rate of 0.
    with np.errstate(divide="ignore", over="ignore"):
        return 1 / (1 + rate**shape * np.exp(-shape * mid))
