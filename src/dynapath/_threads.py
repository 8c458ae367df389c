"""How many threads a fit computes on, whatever the environment says.

A step of a fit works on one minibatch. Split over threads, a small one is over before all threads have met again, and on a
machine with other work they wait for one another: ten times as long, or more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Numbers in the largest array of a step, such as cells of a minibatch times genes. From here on more threads pay.
LARGE = 1_000_000


@contextmanager
def threads_for(size: int) -> Iterator[None]:
    """Compute on one thread where steps are small, and put every number of threads back, after an error too.

    Parameters
    ----------
    size
        Numbers in the largest array of a step. From `LARGE` on the numbers of threads stay as they are.
    """
    if size >= LARGE:
        yield
        return
    with one_thread():
        yield


def few_threads(size: Callable[..., int]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function compute on as many threads as `threads_for` gives a step; `size` says how large, from its arguments."""

    def decorate(fit: Callable[P, T]) -> Callable[P, T]:
        @wraps(fit)
        def limited(*args: P.args, **kwargs: P.kwargs) -> T:
            with threads_for(size(*args, **kwargs)):
                return fit(*args, **kwargs)

        return limited

    return decorate


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread in torch, BLAS and OpenMP, and put every number of threads back, after an error too."""
    import torch
    from threadpoolctl import threadpool_limits

    n_threads = torch.get_num_threads()
    try:
        with threadpool_limits(limits=1):
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(n_threads)
