"""NEFTune (Jain et al. 2023, arXiv:2310.05914): uniform noise on the input embeddings, while the model trains.

transformers' Trainer scales it by the padded length of the batch. Here it is the row's own, as in the paper: what a row
trains on does not depend on its neighbours. Rows of other lengths would need other noise on the tokens that they share,
so they share none.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.model.compute.attention import batch_laid_out


def add_noise(model: PreTrainedModel, alpha: float) -> None:
    """From here on every embedding of a row of L tokens gets noise of [-1, 1] * alpha / sqrt(L * d) in training mode,

    where d is its width; prompts and answers alike. It is drawn from torch's random state, once for each forward pass:
    layers that are computed again under gradient checkpointing get the embeddings that they got before.
    """
    model.get_input_embeddings().register_forward_hook(partial(_noisy, alpha))


def _noisy(alpha: float, module: nn.Module, _: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
    if not module.training:
        return embeddings
    batch = batch_laid_out()
    assert batch is not None, "a model that trains on something else than a batch"
    size = alpha * (batch.row_lengths * embeddings.shape[-1]).float().rsqrt()
    noise = torch.empty(embeddings.shape, dtype=torch.float32, device=embeddings.device).uniform_(-1, 1)
    return embeddings + noise.mul_(size[..., None]).to(embeddings.dtype)
