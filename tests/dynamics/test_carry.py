"""Cells carried by their group: the flow where there is no noise, and never wider than the group."""

import pytest
import torch

from dynapath.dynamics import LinearMixture, propagator
from dynapath.dynamics.carry import carrier

STARTS, ENDS = torch.tensor([0.0, 0.5, 1.0]).double(), torch.tensor([0.2, 0.5, 1.4]).double()


def mixture(log_noise=-2.0, floor=1e-3, shift=0.0, n_copies=None, seed=0):
    model = LinearMixture(2, 2, floor=floor, n_copies=n_copies).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model._A.add_(shift * torch.eye(2))
        model._log_q.fill_(log_noise)
    return model


def test_without_noise_cells_are_carried_along_the_flow_in_either_direction():
    model = mixture(log_noise=-60.0, floor=1e-14)
    found = carrier(model, STARTS, ENDS)
    Phi, _ = propagator(model.A[:, None, None], model.b[:, None, None], ENDS - STARTS[:, None])
    torch.testing.assert_close(found.matrix, Phi.detach(), atol=1e-5, rtol=1e-5)


def test_a_carried_cloud_is_as_wide_as_its_group():
    model = mixture()
    found = carrier(model, STARTS, ENDS)
    before, after = model.at(STARTS).cov.unsqueeze(2), model.at(ENDS).cov.unsqueeze(1)
    torch.testing.assert_close(found.matrix @ before @ found.matrix.mT, after.expand(-1, 3, -1, -1, -1).detach())


def test_the_way_back_undoes_the_way_there():
    model = mixture()
    there, back = carrier(model, STARTS, ENDS).matrix, carrier(model, ENDS, STARTS).matrix
    torch.testing.assert_close(there @ back.transpose(1, 2), torch.eye(2).double().expand_as(there))


def test_groups_that_relax_fast_carry_cells_back_to_where_the_group_was():
    # The flow would take them e^20 times as far from its mean.
    model = mixture(shift=-20.0)
    found = carrier(model, torch.ones(1).double(), torch.zeros(1).double())
    widths = torch.linalg.matrix_norm(found.matrix, 2)
    assert widths.max() < 100


def test_a_cell_moves_at_its_time_as_it_is_carried():
    model, h = mixture(), 1e-5
    now = torch.tensor([0.3]).double()
    found = carrier(model, now, torch.cat([now - h, now, now + h]))
    slope = (found.matrix[:, 0, 2] - found.matrix[:, 0, 0]) / (2 * h)
    torch.testing.assert_close(slope, found.rate[:, 1], atol=1e-5, rtol=1e-5)
    centre = (found.end[:, 2] - found.end[:, 0]) / (2 * h)
    torch.testing.assert_close(centre, found.end_rate[:, 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("draw", [0, 2])
def test_draws_side_by_side_are_each_alone(draw):
    copies = mixture(n_copies=3)
    together, alone = carrier(copies, STARTS, ENDS), carrier(copies.select(draw), STARTS, ENDS)
    for name in ("start", "end", "matrix", "end_rate", "rate"):
        torch.testing.assert_close(getattr(together, name)[draw], getattr(alone, name), atol=1e-6, rtol=1e-6)
