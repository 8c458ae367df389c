"""n_groups="auto": which numbers of groups are tried on these cells, and how clear the choice was."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from dynapath.read import counts as read

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

# Kass & Raftery (1995), doi:10.1080/01621459.1995.10476572, call larger differences of the BIC strong.
_CLEAR = 6.0


def numbers_to_try(
    n_groups: int | Sequence[int] | Literal["auto"], times: NDArray[np.float64], labels: pd.Categorical | None
) -> tuple[tuple[int, ...], list[str]]:
    """One number if one was given; and what was said of numbers that the smallest snapshot has no cells for."""
    from dynapath.dynamics.choose_groups import candidate_groups

    names = [] if labels is None else [name for name in labels.categories if name != read.UNLABELLED]
    return read.limit_groups(times, candidate_groups(n_groups, names), stacklevel=5)


def judge_choice(table: Mapping[str, NDArray]) -> list[str]:
    """What has to be said about a choice, each also as a warning."""
    numbers, delta, chosen = table["n_groups"], table["delta_bic"], int(np.argmax(table["chosen"]))
    named = lambda which: ", ".join(map(str, numbers[which]))
    said = []
    eligible, share = table["eligible"], table["smallest_share"]
    tiny = ~eligible & (delta < delta[chosen])
    if tiny.any():
        lowest = int(np.argmin(np.where(tiny, delta, np.inf)))
        said.append(
            f"The BIC of n_groups={numbers[lowest]} is lower than that of {numbers[chosen]} by {delta[chosen] - delta[lowest]:.0f}, "
            f"but then a group has only {share[lowest]:.1%} of the cells, more often outliers than a population. Give "
            f"n_groups={numbers[lowest]} to have it."
        )
    rivals = eligible & (np.abs(delta - delta[chosen]) < _CLEAR) & (numbers != numbers[chosen])
    if rivals.any():
        said.append(
            f"The number of groups is not clear: n_groups={numbers[chosen]} was chosen, and the BIC of {named(rivals)} differs "
            f"from it by less than {_CLEAR:g}. Look at dp.get.n_groups, and compare the fits."
        )
    # NaN where there was one restart.
    lucky = (table["restart_gap"] > delta - delta[chosen]) & (numbers != numbers[chosen]) & eligible & ~rivals
    if lucky.any():
        said.append(
            f"The restarts with n_groups={named(lucky)} differ by more than the BIC does from that of {numbers[chosen]}, so "
            "more restarts could change the choice. Raise Training(n_restarts=...)."
        )
    worse = table["log_likelihood"] < np.maximum.accumulate(table["log_likelihood"])
    if worse.any():
        said.append(
            f"With n_groups={named(worse)} the likelihood is lower than with fewer groups, so no restart has found the best "
            "fit there. Raise Training(n_restarts=...)."
        )
    if chosen == len(numbers) - 1 and len(numbers) > 1:
        said.append(
            f"The largest number of groups that was tried, {numbers[chosen]}, was chosen; more may be better. Give more to "
            f"choose from: n_groups=range(1, {2 * numbers[chosen] + 1})."
        )
    for message in said:
        warnings.warn(message, UserWarning, stacklevel=4)
    return said
