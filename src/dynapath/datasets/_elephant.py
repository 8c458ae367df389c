"""An elephant with four complex parameters, and a fifth for its eye and trunk."""

from __future__ import annotations

from numbers import Integral

import numpy as np
import pandas as pd
from anndata import AnnData

from dynapath._elephant import PARAMETERS, outline, trunk


def elephant(
    n_points: int = 200, *, noise: float | int = 0.0, swing: float | int = 0.0, random_state: int | None = 0
) -> AnnData:
    r"""Points on the outline of an elephant that is drawn by four complex parameters.

    "With four parameters I can fit an elephant, and with five I can make him wiggle his trunk" is a saying of John von
    Neumann that [1]_ made true. With :math:`p_1, \dots, p_4` the outline at angle t is

    .. math::

        x(t) &= \mathrm{Re}\,p_1 \sin t + \mathrm{Re}\,p_2 \sin 2t + \mathrm{Re}\,p_3 \cos 3t + \mathrm{Re}\,p_4 \cos 5t \\
        y(t) &= \mathrm{Im}\,p_4 \cos t + \mathrm{Im}\,p_1 \sin t + \mathrm{Im}\,p_2 \sin 2t + \mathrm{Im}\,p_3 \sin 3t

    and the animal stands upright when (y, -x) is drawn. The imaginary part of :math:`p_5` places its eye, the real part says
    how far the trunk swings: each of its points rises by :math:`\mathrm{Re}\,p_5` times `swing` times a weight that is 1 at the
    tip and 0 where the trunk begins.

    Parameters
    ----------
    n_points
        Number of points, at equally spaced angles.
    noise
        Standard deviation of normal noise on both coordinates; the outline is about 200 wide.
    swing
        How far the trunk is raised, 0 as in the paper; from -.5 to .5 it looks like one.
    random_state
        Seed of the noise. The global random state is neither used nor changed.

    Returns
    -------
    AnnData with

    - `X` (point, coordinate) the points, upright: `right`, `up`; `layers["true"]` without noise.
    - `obs["angle"]` from 0 to 2 pi; `obs["trunk"]` how much a point moves with the trunk.
    - `uns["truth"]` the parameters: `real` and `imaginary` parts (5); `swing`.

    Raises
    ------
    ValueError : for fewer than 3 points, or negative noise.

    References
    ----------
    .. [1] J. Mayer, K. Khairy, J. Howard. Drawing an elephant with four complex parameters. American Journal of Physics 78,
       648-649 (2010). doi:10.1119/1.3254017

    Examples
    --------
    >>> import dynapath as dp
    >>> dp.datasets.elephant(n_points=100, noise=2.0).shape
    (100, 2)
    """
    if not isinstance(n_points, Integral) or n_points < 3:
        msg = f"n_points must be a whole number of at least 3; it is {n_points!r}."
        raise ValueError(msg)
    if not noise >= 0:
        msg = f"noise is a standard deviation, so not negative; it is {noise!r}."
        raise ValueError(msg)
    angle = np.linspace(0, 2 * np.pi, n_points, endpoint=False)
    upright = outline(angle, PARAMETERS, swing)
    rng = np.random.default_rng(random_state)
    return AnnData(
        X=upright + noise * rng.standard_normal(upright.shape),
        obs=pd.DataFrame({"angle": angle, "trunk": trunk(angle)}, index=[f"point{i}" for i in range(n_points)]),
        var=pd.DataFrame(index=["right", "up"]),
        layers={"true": upright},
        uns={
            "truth": {
                "real": np.array([p.real for p in PARAMETERS]),
                "imaginary": np.array([p.imag for p in PARAMETERS]),
                "swing": float(swing),
            }
        },
    )
