"""Times as they were measured: what narrow numbers add when they are read, and what rounding leaves when they are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of the span of the times: a step as short as this part of it is no step.
_PART = 1e-9


def in_decimals(times: Any) -> NDArray[np.float64]:
    """Times in float64; those of narrower floats as they are written, 2020.1 for the 2020.0999756 that float32 holds.

    Parameters
    ----------
    times
        An array, a tensor, a list, or a column of a table, of numbers. What is missing becomes NaN.
    """
    held = _held(times)
    if held.dtype.kind != "f" or held.dtype.itemsize >= 8:
        return held.astype(float)
    distinct, index = np.unique(held, return_inverse=True)
    # numpy writes as many digits as are needed to tell a number from its neighbours.
    return distinct.astype(str).astype(float)[index].reshape(held.shape)


def settled(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same times, but one number for those that differ by the rounding of sums and products, such as 0.1 + 0.2 and 0.3."""
    distinct, index = np.unique(times, return_inverse=True)
    finite = distinct[np.isfinite(distinct)]
    if len(finite) < 2:
        return times
    apart = min(4 * np.finfo(float).eps * np.abs(finite).max(), _PART * np.ptp(finite))
    # NaN is apart from everything.
    first = np.maximum.accumulate(np.where(np.diff(distinct, prepend=-np.inf) <= apart, 0, np.arange(len(distinct))))
    return distinct[first][index].reshape(times.shape)


def same_within(times: Any) -> float:
    """How far a time may be from one of `times` and still mean it.

    A billionth of their span, or twice the distance of neighbouring numbers at the largest of them in the precision that
    holds them, if that is more; but never as much as a quarter of the smallest gap between them.
    """
    held = _held(times)
    eps = np.finfo(held.dtype if held.dtype.kind == "f" else float).eps
    distinct = np.unique(in_decimals(held))
    distinct = distinct[np.isfinite(distinct)]
    if not len(distinct):
        return 0.0
    within = max(_PART * float(np.ptp(distinct)), 2 * float(eps) * float(np.abs(distinct).max()))
    return min(within, float(np.diff(distinct).min()) / 4) if len(distinct) > 1 else within


def _held(times: Any) -> NDArray:
    """Return the times as an array in the precision that they have."""
    if not hasattr(times, "to_numpy"):
        return np.asarray(times) if np.asarray(times).dtype.kind == "f" else np.asarray(times, dtype=float)
    # Types of pandas' own know the one of numpy.
    dtype = getattr(times.dtype, "numpy_dtype", times.dtype)
    is_float = isinstance(dtype, np.dtype) and dtype.kind == "f"
    return times.to_numpy(dtype=dtype if is_float else float, na_value=np.nan)
