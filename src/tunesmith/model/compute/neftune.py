"""NEFTune (Jain et al. 2023, arXiv:2310.05914): uniform noise on the input embeddings during training.

transformers' Trainer scales the noise by the padded length of the batch. Here it is the row's own length, as in the
paper, so that a row's training does not depend on its neighbours. The noise of a token depends on the length of its
row, so rows cannot share tokens.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.model.compute.attention import batch_laid_out


def add_noise(model: PreTrainedModel, alpha: float) -> None:
    """Adds noise of [-1, 1] * alpha / sqrt(L * d) to all embeddings of a row of L tokens and width d in training mode.

    Prompts and answers get it alike. It is drawn from torch's random state, once for each forward pass: layers that are
    computed again under gradient checkpointing get the same embeddings as before.
    """
    model.get_input_embeddings().register_forward_hook(partial(_noisy, alpha))


def _noisy(alpha: float, module: nn.Module, _: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
    """The embeddings [B,L,d] with noise."""
    if not module.training:
        return embeddings
    batch = batch_laid_out()
    assert batch is not None, "in training mode the model computes batches only"
    size = alpha * (batch.row_lengths * embeddings.shape[-1]).float().rsqrt()  # [B,L]
    noise = torch.empty(embeddings.shape, dtype=torch.float32, device=embeddings.device).uniform_(-1, 1)
    return embeddings + noise.mul_(size[..., None]).to(embeddings.dtype)
