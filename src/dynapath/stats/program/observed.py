"""dp.stats.where_observed: leave out what was not measured, from the value and from the derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def where_observed(
    observed: Tensor,
    value: Tensor | Callable[..., Tensor],
    *inputs: Tensor,
    otherwise: float = 0.0,
    stand_in: float | None = None,
) -> Tensor:
    """`value` where something was observed, `otherwise` elsewhere, without NaN in the derivative.

    `torch.where(observed, log(y), 0)` has the right value where y is missing, but not the right derivative: the chain rule
    multiplies the 0 of the branch not taken with the infinite or undefined derivative inside it, and 0 times infinity is
    NaN. So what is missing must be replaced *before* the computation as well as after it. Given a function, this does
    both.

    Parameters
    ----------
    observed
        True where there is a measurement, e.g. `~torch.isnan(y)`.
    value
        A function of `inputs`, elementwise, that is computed with `stand_in` in place of what was not observed. Or a
        tensor: then only it is replaced, as for data at the start of a program.
    inputs
        What the function is computed from; those that may be NaN must be among them.
    otherwise
        The result where nothing was observed. Residuals and losses that are exactly 0, with all their derivatives, do not
        count as data in :func:`dynapath.stats.estimate`.
    stand_in
        A number at which the function is finite, by default 1.

    Returns
    -------
    A tensor of the common shape.

    Examples
    --------
    >>> import torch, dynapath as dp
    >>> y, rate = torch.tensor([2.0, float("nan")]), torch.tensor(1.0, requires_grad=True)
    >>> loss = dp.stats.where_observed(~y.isnan(), lambda y: (y - rate) ** 2, y).sum()
    >>> loss.backward()
    >>> rate.grad
    tensor(-2.)
    """
    observed = torch.as_tensor(observed)
    if observed.dtype != torch.bool:
        msg = f"observed must be True and False; it has {observed.dtype}. Write e.g. ~torch.isnan(y)."
        raise TypeError(msg)
    if callable(value):
        at = 1.0 if stand_in is None else stand_in
        value = value(*(torch.where(observed, x, at) for x in inputs))
    elif inputs:
        msg = "inputs go with a function as value; a tensor has been computed already."
        raise TypeError(msg)
    elif stand_in is not None:
        msg = f"stand_in={stand_in!r} goes with a function as value; a tensor has been computed already. Did you mean otherwise?"
        raise TypeError(msg)
    return torch.where(observed, value, otherwise)
