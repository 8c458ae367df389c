"""The end of training: what is linear in the decoder's logits, brought to its optimum with the states held fixed.

    logits = W z + shift + V h(z),    minimise  -mean_i log p(x_i | z_i) + decoder_ridge ||V||^2  over W, shift, V and theta

with z drawn from q(z | x). Given the states this is a penalised regression of the counts. Joint training stops short of its
optimum: the network still holds slopes that the linear path should, which costs nothing among the training cells and much
beyond them, where a network levels off.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from ._dynamic_module import DynamicVAEModule

_LR = 0.02
_BATCH = 1024


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
