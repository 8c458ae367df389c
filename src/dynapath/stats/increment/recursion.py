r"""The increment model y[t] = s + d, d = b1 + b2 s + b3 z[t-1] + ..., and its derivatives.

The state s is the last report, carried on by the model over days without one: s <- s + d. The first report only starts
the trajectory. A report m days after the one before has the innovation e = y - s - d, an m-step-ahead error of variance
sigma^2 v_m with v <- a^2 v + 1 and a = 1 + b2: the innovations of a Kalman filter for an ARX(1) process that is observed
without noise or not at all. Its derivatives are carried along: D <- a D + (1, s, z), D <- 0 at a report; de/db = -D.

Source: Hackenberg et al., The American Statistician (2021), doi:10.1080/00031305.2021.2002189, where the same derivatives
come from differentiable programming.

For counts the mean must be positive: s + d is passed through the smooth floor h(x) = (x + sqrt(x^2 + c^2)) / 2.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from numpy.typing import NDArray

from dynapath.dynamics.increments import FLOOR

# Losses, as the compiled functions know them.
LOSSES = {"squared": 0, "huber": 1, "poisson": 2, "negative_binomial": 3}
_SQUARED, _HUBER, _POISSON, _NEGATIVE_BINOMIAL = LOSSES.values()

# Columns of what `_accumulate` sums besides gradient and curvature.
N_SUMS = 9
LOSS, COUNT, LOG_V, DLOG_V, DLOG_V2, LOSS_DLOG_V, SECOND_0, SECOND_1, SECOND_2 = range(N_SUMS)
# Which products of derivatives are summed.
CURVATURE, OBSERVED_SCORES, MODEL_SCORES = range(3)


# Division by zero gives inf or NaN, which no step of a search accepts.
# Multiplications and additions may be fused, which shortens the chain from day to day.
compiled = njit(cache=True, error_model="numpy", fastmath={"contract"})


@compiled
def _floored(x):
    root = math.sqrt(x * x + FLOOR * FLOOR)
    value = 0.5 * (x + root) if x > 0.0 else 0.5 * FLOOR * FLOOR / (root - x)
    return value, value / root


@compiled
def _advance(z, unit, t, source, lag, b, counts, s, v, dv, D):
    """Mean of day t given the state of the day before; D is changed in place."""
    a = 1.0 + b[1]
    mean = s + b[0] + b[1] * s
    D[0] = a * D[0] + 1.0
    D[1] = a * D[1] + s
    for j in range(source.shape[0]):
        x = z[source[j], unit, t - lag[j]]
        mean += b[2 + j] * x
        D[2 + j] = a * D[2 + j] + x
    dv = 2.0 * a * v + a * a * dv
    v = a * a * v + 1.0
    if counts:
        mean, slope = _floored(mean)
        for j in range(D.shape[0]):
            D[j] *= slope
    return mean, v, dv


@compiled
def _loss(report, mean, kind, tuning):
    """Loss of one report, its derivative with respect to the mean, and its expected second derivative."""
    e = report - mean
    if kind == _SQUARED:
        return 0.5 * e * e, -e, 1.0
    if kind == _HUBER:
        if abs(e) <= tuning:
            return 0.5 * e * e, -e, 1.0
        return tuning * (abs(e) - 0.5 * tuning), -math.copysign(tuning, e), tuning / abs(e)
    if kind == _POISSON:
        return mean - report * math.log(mean), -e / mean, 1.0 / mean
    variance = mean * (1.0 + tuning * mean)
    r = 1.0 / tuning
    value = (r + report) * math.log1p(tuning * mean) - report * math.log(tuning * mean)
    return value - math.lgamma(report + r) + math.lgamma(r), -e / variance, 1.0 / variance


@compiled
def one_step_products(y, z, unit, source, lag, first, out):
    """Sum of D D' over reports on the day after a report, where D = (1, s, z) whatever the coefficients are."""
    out[:] = 0.0
    if out.shape[0] != 3:  # the general way has no use for it
        return
    h00 = h01 = h02 = h11 = h12 = h22 = 0.0
    j, back = source[0], lag[0]
    for t in range(first + 1, y.shape[1]):
        s = y[unit, t - 1]
        if not math.isnan(s) and not math.isnan(y[unit, t]):
            x = z[j, unit, t - back]
            h00 += 1.0
            h01 += s
            h02 += x
            h11 += s * s
            h12 += s * x
            h22 += x * x
    out[0, 0], out[1, 1], out[2, 2] = h00, h11, h22
    out[0, 1] = out[1, 0] = h01
    out[0, 2] = out[2, 0] = h02
    out[1, 2] = out[2, 1] = h12


@compiled
def _accumulate_one_covariate(y, z, unit, source, lag, first, b0, b1, b2, one_step, sums, gradient, products):
    """`accumulate` for the squared loss and one covariate, with all sums in registers: many times as fast.

    Adds up e times the second derivatives as well (SECOND_0 to 2), which all involve the state coefficient:
    q_k <- a q_k + D_k, and twice D_k for that coefficient itself. On the day after a report they are 0.
    """
    n_days = y.shape[1]
    a = 1.0 + b1
    t = first
    while t < n_days and math.isnan(y[unit, t]):
        t += 1
    s = y[unit, t] if t < n_days else 0.0
    d0 = d1 = d2 = q0 = q1 = q2 = 0.0
    c0 = c1 = c2 = 0.0
    loss = g0 = g1 = g2 = 0.0
    n = one_step[0, 0]
    h00 = h01 = h02 = h11 = h12 = h22 = 0.0
    fresh = True  # the day before was reported
    for day in range(t + 1, n_days):
        x = z[source, unit, day - lag]
        report = y[unit, day]
        reported = not math.isnan(report)
        if fresh and reported:
            e = report - (a * s + (b0 + b2 * x))
            loss += 0.5 * e * e
            g0 -= e
            g1 -= e * s
            g2 -= e * x
            s = report
            continue
        q0 = a * q0 + d0
        q1 = a * q1 + 2.0 * d1
        q2 = a * q2 + d2
        d0 = a * d0 + 1.0
        d1 = a * d1 + s
        d2 = a * d2 + x
        s = a * s + (b0 + b2 * x)
        fresh = reported
        if reported:
            e = report - s
            loss += 0.5 * e * e
            n += 1.0
            g0 -= e * d0
            g1 -= e * d1
            g2 -= e * d2
            h00 += d0 * d0
            h01 += d0 * d1
            h02 += d0 * d2
            h11 += d1 * d1
            h12 += d1 * d2
            h22 += d2 * d2
            c0 += e * q0
            c1 += e * q1
            c2 += e * q2
            s = report
            d0 = d1 = d2 = q0 = q1 = q2 = 0.0
    sums[:] = 0.0
    sums[LOSS], sums[COUNT] = loss, n
    sums[SECOND_0], sums[SECOND_1], sums[SECOND_2] = c0, c1, c2
    gradient[0], gradient[1], gradient[2] = g0, g1, g2
    products[0, 0] = one_step[0, 0] + h00
    products[1, 1] = one_step[1, 1] + h11
    products[2, 2] = one_step[2, 2] + h22
    products[0, 1] = products[1, 0] = one_step[0, 1] + h01
    products[0, 2] = products[2, 0] = one_step[0, 2] + h02
    products[1, 2] = products[2, 1] = one_step[1, 2] + h12


@compiled
def accumulate(y, z, unit, source, lag, first, b, kind, tuning, gap, outer, one_step, sums, gradient, products, D):
    """Loss of one unit, its gradient, and a sum of products D D', all added up in place.

    `tuning` is the threshold of Huber's loss or the overdispersion of the negative binomial. With `gap`, squares are
    divided by v; what the logarithm of v adds is summed apart (LOG_V and so on), as it does not scale with 1 / sigma^2.
    `outer` says which products: the expected curvature, the observed variance of the scores, or their variance under
    the model, sigma^2 apart. `one_step` are the unit's :func:`one_step_products`.
    """
    k = b.shape[0]
    if k == 3 and kind == _SQUARED and not gap and outer == CURVATURE:
        _accumulate_one_covariate(
            y, z, unit, source[0], lag[0], first, b[0], b[1], b[2], one_step, sums, gradient, products
        )
        return
    counts = kind >= _POISSON
    sums[:] = 0.0
    gradient[:] = 0.0
    products[:] = 0.0
    D[:] = 0.0
    seen = False
    s = v = dv = 0.0
    for t in range(first, y.shape[1]):
        report = y[unit, t]
        if not seen:
            if not math.isnan(report):
                seen = True
                s = report
            continue
        mean, v, dv = _advance(z, unit, t, source, lag, b, counts, s, v, dv, D)
        if math.isnan(report):
            s = mean
            continue
        value, slope, weight = _loss(report, mean, kind, tuning)
        if gap:
            dlog = dv / v
            value, slope, weight = value / v, slope / v, weight / v
            sums[LOG_V] += math.log(v)
            sums[DLOG_V] += dlog
            sums[DLOG_V2] += dlog * dlog
            sums[LOSS_DLOG_V] += value * dlog
        sums[LOSS] += value
        sums[COUNT] += 1.0
        if outer == OBSERVED_SCORES:
            weight = slope * slope
        elif outer == MODEL_SCORES and kind == _SQUARED:
            weight *= weight * v
        for i in range(k):
            gradient[i] += slope * D[i]
            for j in range(i + 1):
                products[i, j] += weight * D[i] * D[j]
        s = report
        v = dv = 0.0
        D[:] = 0.0
    for i in range(k):
        for j in range(i):
            products[j, i] = products[i, j]


@compiled
def accumulate_all(y, z, source, lag, first, params, kind, tuning, gap, outer):
    """Sums (unit, sum), gradients (unit, coefficient) and products (unit, coefficient, coefficient) at `params`."""
    n_units, k = params.shape
    sums = np.empty((n_units, N_SUMS))
    gradient = np.empty((n_units, k))
    products = np.empty((n_units, k, k))
    D, one_step = np.empty(k), np.empty((k, k))
    for u in range(n_units):
        one_step_products(y, z, u, source, lag, first, one_step)
        accumulate(
            y, z, u, source, lag, first, params[u], kind, tuning[u], gap, outer, one_step, sums[u], gradient[u],
            products[u], D,
        )  # fmt: skip
    return sums, gradient, products


@compiled
def reports_of(y, first):
    """Number of reports of every unit from day `first` on, and whether they are all equal."""
    n_reports, constant = np.zeros(y.shape[0], np.int64), np.ones(y.shape[0], np.bool_)
    for unit in range(y.shape[0]):
        before = math.nan
        for t in range(first, y.shape[1]):
            report = y[unit, t]
            if not math.isnan(report):
                n_reports[unit] += 1
                if before != report and n_reports[unit] > 1:
                    constant[unit] = False
                before = report
    return n_reports, constant


@compiled
def standardised_squares(y, z, source, lag, first, params):
    """Sum of e^2 / v, number of innovations, and sum of squared reports of every unit."""
    squares, n, size = np.zeros(y.shape[0]), np.zeros(y.shape[0]), np.zeros(y.shape[0])
    for unit in range(y.shape[0]):
        b0, b1 = params[unit, 0], params[unit, 1]
        a = 1.0 + b1
        seen = False
        s = v = 0.0
        for t in range(first, y.shape[1]):
            report = y[unit, t]
            if seen:
                s += b0 + b1 * s
                for j in range(source.shape[0]):
                    s += params[unit, 2 + j] * z[source[j], unit, t - lag[j]]
                v = a * a * v + 1.0
            if not math.isnan(report):
                if seen:
                    e = report - s
                    squares[unit] += e * e if v == 1.0 else e * e / v
                    n[unit] += 1.0
                    size[unit] += report * report
                s, v, seen = report, 0.0, True
    return squares, n, size


@compiled
def _follow(y, z, source, lag, first, params, counts, overdispersion, state, resid, variance):
    n_units, n_days = y.shape
    for unit in range(n_units):
        b = params[unit]
        a = 1.0 + b[1]
        seen = False
        s = v = 0.0
        for t in range(n_days):
            report = y[unit, t]
            reported = not math.isnan(report)
            if seen:
                mean = s + b[0] + b[1] * s
                for j in range(source.shape[0]):
                    mean += b[2 + j] * z[source[j], unit, t - lag[j]]
                if counts:
                    mean, _ = _floored(mean)
                    v = a * a * v + mean * (1.0 + overdispersion[unit] * mean)
                else:
                    v = a * a * v + 1.0
                if reported:
                    resid[unit, t] = report - mean
                s = mean
            if reported:
                s, v = report, 0.0
                seen = t >= first
            if seen or reported:
                state[unit, t] = s
                variance[unit, t] = v


def follow(
    y: Float[NDArray, "unit day"],
    z: Float[NDArray, "covariate unit day"],
    source: Int[NDArray, " column"],
    lag: Int[NDArray, " column"],
    params: Float[NDArray, "unit coefficient"],
    *,
    first: int = 0,
    overdispersion: Float[NDArray, " unit"] | None = None,
) -> tuple[Float[NDArray, "unit day"], Float[NDArray, "unit day"], Float[NDArray, "unit day"]]:
    """Filtered state, innovations, and variance of the state.

    The state is NaN before the first report, innovations are NaN where there is none. The variance is 0 at reports and
    in units of sigma^2 between them; with `overdispersion` (of counts; 0 is Poisson) it is the variance itself.
    """
    state, resid, variance = (np.full(y.shape, np.nan) for _ in range(3))
    counts = overdispersion is not None
    alpha = overdispersion if overdispersion is not None else np.zeros(len(y))
    _follow(y, z, source, lag, first, params, counts, alpha, state, resid, variance)
    return state, resid, variance


@compiled
def _derivatives(y, z, source, lag, first, params, counts, out):
    n_units, n_days = y.shape
    for unit in range(n_units):
        D = out[unit]
        seen = False
        s = 0.0
        for t in range(first, n_days):
            report = y[unit, t]
            if seen:
                s, _, _ = _advance(z, unit, t, source, lag, params[unit], counts, s, 0.0, 0.0, D)
            if not math.isnan(report):
                s, seen = report, True
                D[:] = 0.0


def derivatives(
    y: Float[NDArray, "unit day"],
    z: Float[NDArray, "covariate unit day"],
    source: Int[NDArray, " column"],
    lag: Int[NDArray, " column"],
    params: Float[NDArray, "unit coefficient"],
    *,
    first: int = 0,
    counts: bool = False,
) -> Float[NDArray, "unit coefficient"]:
    """Of the last day's state with respect to the coefficients: 0 where that day was reported."""
    out = np.zeros(params.shape)
    _derivatives(y, z, source, lag, first, params, counts, out)
    return out
