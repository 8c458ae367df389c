import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import dynapath as dp


def test_it_stands_on_its_feet_looks_to_the_right_and_has_an_eye():
    ax = dp.pl.elephant(show=False)
    drawn = {line.get_gid(): line.get_xydata() for line in ax.lines}
    outline, eye = drawn["outline"], drawn["eye"][0]
    np.testing.assert_array_equal(eye, [20, 20])
    # The feet are two lowest points left and right of the middle; the tip of the trunk is farthest right, above them.
    lowest = outline[outline[:, 1] < -50, 0]
    assert lowest.min() < -50
    assert lowest.max() > -20
    assert outline[outline[:, 0].argmax(), 1] > 0
    assert ax.get_aspect() == 1


def test_points_and_another_elephant_can_be_drawn():
    points = dp.datasets.elephant(50, noise=2.0)
    ax = dp.pl.elephant(points, parameters=[1 + 1j, 2, 3, 4j], show=False)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), points.X)
    assert {line.get_gid() for line in ax.lines} == {"outline"}
    assert not dp.pl.elephant(points, parameters=None, show=False).lines
    raised = dp.pl.elephant(swing=0.5, show=False).lines[0].get_ydata()
    assert (raised - ax.figure.axes[0].lines[0].get_ydata()).any()


def test_show_return_fig_and_ax_decide_what_comes_back(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    assert dp.pl.elephant(show=True) is None
    assert isinstance(dp.pl.elephant(return_fig=True), Figure)
    ax = plt.subplots()[1]
    assert dp.pl.elephant(ax=ax, show=False) is ax


def test_what_is_no_elephant_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        dp.pl.elephant(parameters=None)
    with pytest.raises(ValueError, match="there are 3"):
        dp.pl.elephant(parameters=[1, 2, 3])
