"""Hidden states -> log-probabilities of the targets. Logits exist only where a label needs them, a chunk at a time.

The decoder gives the hidden states. The output layer, and what the model does to its logits (scaling, soft-capping),
are applied here, after they were compared once with the model's own logits. A model for which they differ computes its
logits itself, for the positions in ``logits_to_keep``.

Shapes: B rows of L tokens, N positions whose logits are needed, E edges (one for each label of each row), V tokens of
the vocabulary, H the width of a hidden state, K rows of the output layer that train apart. ``of_x`` is the gradient of
the loss by ``x``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tunesmith.data.batches.layout import Batch, Edges
from tunesmith.model.compute.agreement import agree
from tunesmith.model.compute.attention import forward_arguments, laid_out
from tunesmith.model.compute.choices import choose
from tunesmith.model.compute.fused_modules import reading
from tunesmith.model.compute.kept_keys import KeepingCache
from tunesmith.model.compute.layers import adds_prompt_tokens, inner_model
from tunesmith.model.compute.limits import LOGITS_AT_ONCE
from tunesmith.model.compute.slots import SlotCache, SlotPass, feeding
from tunesmith.model.modes import evaluation_mode

_ROUNDINGS = 8.0  # of the dtype: how near our logits must be to the model's own


@dataclass(frozen=True, slots=True)
class Targets:
    """For each edge of a batch [E]: its log-probability (fp32) and whether its token was the likeliest one.

    If choices were asked for: ``likeliest`` is the id of the likeliest token, and ``certain`` whether rounding cannot
    make it another one (choices.py).
    """

    logprobs: Tensor
    correct: Tensor
    likeliest: Tensor | None = None
    certain: Tensor | None = None


def target_logprobs(
    model: nn.Module, batch: Batch, *, choices: bool = False, keep: KeepingCache | None = None
) -> Targets:
    """One forward pass over a batch that is already on the model's device. Gradients flow through ``logprobs``.

    Args:
        choices: also say which token is the likeliest at each edge, and whether that is certain.
        keep: takes the keys and values, unless the model makes its logits itself.
    """
    dtype = inner_model(model).dtype if choices else None
    made = _predicting_states(model, batch, keep)
    # A model whose logits we cannot make makes them itself.
    if made is None:
        with laid_out(batch):
            logits = _own_logits(model, batch)
        logprobs, correct = _Pick.apply(logits, batch.edges.logit, batch.edges.target)  # type: ignore[misc]
        return Targets(logprobs, correct, *_chosen(logits, batch.edges.logit, dtype))
    base, transform, hidden = made
    return _read_out(base, transform, hidden, batch.edges, dtype)


def _predicting_states(
    model: nn.Module, batch: Batch, keep: KeepingCache | None = None
) -> tuple[Any, LogitTransform, Tensor] | None:
    """The model without wrappers, what it does to its logits, and the hidden states that predict a token [N,H].

    None for a model whose logits we cannot make, or with tokens of its own before ours.
    """
    base = None if adds_prompt_tokens(model) else inner_model(model)
    transform = None if base is None else _logit_transform(base)
    if base is None or transform is None:
        return None
    skips = not _recomputes(base) and _skips_unread(base)
    with laid_out(batch):
        # The decoder. Its last feed-forward block may skip tokens whose hidden states are not read.
        positions = batch.predicts.flatten().nonzero()[:, 0]  # [N], in the flattened batch
        decoder: Any = base.get_decoder()
        cached = {"use_cache": False} if keep is None else {"use_cache": True, "past_key_values": keep}
        arguments = _accepted(decoder, {**forward_arguments(batch), **cached})
        with reading(positions if skips and len(positions) < batch.computed else None):
            hidden = decoder(**arguments).last_hidden_state  # [B,L,H]
    return base, transform, hidden.flatten(0, 1).index_select(0, positions)


@dataclass(frozen=True, slots=True)
class Readout:
    """How a model makes logits from what ``predicting_states`` gives. It stays the same when the model changes."""

    layer: Callable[[Tensor], Tensor]
    transform: LogitTransform

    def __call__(self, states: Tensor) -> Tensor:
        """Logits in fp32 [n,V] from states [n,W]."""
        return self.transform(self.layer(states))


def predicting_states(model: nn.Module, batch: Batch) -> Tensor:
    """What a model knows at each position that predicts a token [N,W], without gradients.

    W is the width of a hidden state. A model whose logits we cannot make gives the logits themselves: W is V.
    """
    with torch.no_grad():
        made = _predicting_states(model, batch)
        if made is not None:
            return made[2]
        with laid_out(batch):
            return _own_logits(model, batch)


def readout_of(model: nn.Module) -> Readout:
    """The output layer as it is now: a view of its weights. What is no plain linear layer is copied."""
    base = None if adds_prompt_tokens(model) else inner_model(model)
    transform = None if base is None else _logit_transform(base)
    if base is None or transform is None:
        return Readout(_as_it_is, LogitTransform())
    layer: Any = base.get_output_embeddings()
    linear, rows = _rows_apart(layer)
    if rows is not None or not _is_plain(linear):
        return Readout(copy.deepcopy(layer), transform)
    bias = None if linear.bias is None else linear.bias.data
    return Readout(partial(nn.functional.linear, weight=linear.weight.data, bias=bias), transform)


def _as_it_is(states: Tensor) -> Tensor:
    return states


def pass_logprobs(model: nn.Module, fed: SlotPass, cache: SlotCache, positions: Tensor, edges: Edges) -> Tensor:
    """The log-probability of each edge [E] in one pass over slots, without gradients; the cache takes its keys.

    Args:
        positions: int64 [N], the tokens of the pass whose logits are needed; ``edges.logit`` counts them.
    """
    base = None if adds_prompt_tokens(model) else inner_model(model)
    transform = None if base is None else _logit_transform(base)
    arguments = {**fed.arguments, "past_key_values": cache}
    with torch.no_grad():
        if base is None or transform is None:
            with feeding(fed):
                logits = model(**_accepted(inner_model(model), {**arguments, "logits_to_keep": positions})).logits[0]
            logits = logits if len(logits) == len(positions) else logits[positions]
            return _Pick.apply(logits, edges.logit, edges.target)[0]  # type: ignore[index]
        decoder = base.get_decoder()
        with feeding(fed):
            hidden = decoder(**_accepted(decoder, arguments)).last_hidden_state[0, positions]  # [N,H]
        return _read_out(base, transform, hidden, edges, None).logprobs


def _read_out(base: Any, transform: LogitTransform, hidden: Tensor, edges: Edges, dtype: torch.dtype | None) -> Targets:
    """The output layer: by one pass of our own where its weight does not train, else by the module itself."""
    output_layer = base.get_output_embeddings()
    linear, rows = _rows_apart(output_layer)
    if _is_plain(linear) and not any(own.requires_grad for own in linear.parameters()):
        ids, weight = (None, None) if rows is None else (rows.ids, rows.weight)
        return Targets(
            *_FrozenOutputLayer.apply(hidden, linear.weight, linear.bias, transform, edges, ids, weight, dtype)
        )
    return _through_module(output_layer, transform, hidden, edges, dtype)


def _chosen(logits: Tensor, line: Tensor, dtype: torch.dtype | None) -> tuple[Tensor | None, Tensor | None]:
    """The likeliest token of each edge [E] and whether it is certain, from logits [N,V]; None where nobody asks."""
    if dtype is None:
        return None, None
    best, certain = choose(logits.detach().float(), dtype)
    return best[line], certain[line]


def target_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own logits at every edge, fp32 [E,V]: all at a time, so for few rows. No gradients are kept."""
    with torch.no_grad(), laid_out(batch):
        return _own_logits(model, batch)[batch.edges.logit].float()


def _recomputes(base: Any) -> bool:
    """Whether layers are computed again in the backward pass, which must find what the first pass found."""
    return base.training and any(getattr(module, "gradient_checkpointing", False) for module in base.modules())


def _own_logits(model: Any, batch: Batch) -> Tensor:
    """[N,V], one line for each True of ``predicts``, also from a model that makes all its logits whatever is asked."""
    arguments = {**forward_arguments(batch), "logits_to_keep": batch.predicts, "use_cache": False}
    logits = model(**_accepted(inner_model(model), arguments)).logits
    if logits.shape[:2] == batch.predicts.shape:  # [B,L,V]
        return logits[batch.predicts]
    logits = logits.reshape(-1, logits.shape[-1])
    assert len(logits) == int(batch.predicts.sum()), "the model gave logits of other positions than were asked for"
    return logits


def _accepted(called: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that a ``forward`` takes. State-space models and hub code may know no positions."""
    known = signature(called.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in known}


def _is_plain(linear: Any) -> bool:
    """Whether this is a linear layer that computes with its weight and bias alone."""
    if type(linear) is not nn.Linear:
        return False
    return not (linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear))


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """Rows of an output layer that train in place of its own: ids [K], weight [K,H]."""

    ids: Tensor
    weight: Tensor


def _rows_apart(layer: Any) -> tuple[Any, TrainedRows | None]:
    """The output layer under PEFT's trained rows, and these rows; the layer itself where it has none to take apart.

    PEFT's class is known by its name, because importing PEFT takes seconds.
    """
    if type(layer).__name__ != "TrainableTokensWrapper" or layer._forward_hooks or layer._forward_pre_hooks:
        return layer, None
    adapter, names = layer.token_adapter, layer.active_adapters
    if layer.disable_adapters:
        return (layer, None) if adapter.merged else (adapter.base_layer, None)
    if adapter.merged or len(names) != 1 or names[0] not in adapter.trainable_tokens_delta:
        return layer, None
    if adapter.base_layer.bias is not None:  # PEFT does not add it
        return layer, None
    weight = adapter.trainable_tokens_delta[names[0]]
    return adapter.base_layer, TrainedRows(torch.tensor(adapter.token_indices[names[0]], device=weight.device), weight)


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model does to its logits: ``cap * tanh(scale * logits / cap)``, or scaling alone where there is no cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The transformed logits in fp32, of the same shape."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative, from the transformed logits."""
        return self.scale if self.cap is None else (1 - (logits / self.cap) ** 2) * self.scale


class _FrozenOutputLayer(torch.autograd.Function):
    """Log-probabilities and their gradient in one pass over chunks, for an output layer that does not train.

    The gradient of sum_e g_e logprob_e, where edge e reads hidden state h_n and has target t, is, by h_n,
    sum_e g_e W[t] - (sum_e g_e) softmax(W h_n) W. The product softmax W does not depend on g, so it is made while the
    logits are at hand: no logits are kept, none are made twice, and any objective may follow.

    A few rows may train: ``rows`` [K,H] stand for those of ``weight`` at ``ids`` [K]. Their gradient is, by row k,
    sum_n (sum_{e of n to k} g_e - (sum_{e of n} g_e) softmax(W h_n)_k) h_n, so K shares of each softmax are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [N,H]
        weight: Tensor,  # [V,H]
        bias: Tensor | None,  # [V]
        transform: LogitTransform,
        edges: Edges,
        ids: Tensor | None,  # [K]
        rows: Tensor | None,  # [K,H]
        choosing: torch.dtype | None,
    ) -> tuple[Tensor | None, ...]:
        needed = hidden.requires_grad or (rows is not None and rows.requires_grad)
        logprobs = torch.empty(len(edges.target), dtype=torch.float32, device=hidden.device)  # [E]
        slopes = torch.ones_like(logprobs)  # [E], of the transform at each target
        correct = torch.empty(len(edges.target), dtype=torch.bool, device=hidden.device)  # [E]
        mean = torch.empty_like(hidden) if needed else None  # [N,H], softmax(W h) W
        own_rows = None if rows is None else rows.to(weight.dtype)
        own_shares = None if ids is None else torch.empty(len(hidden), len(ids), device=hidden.device)  # [N,K]
        likeliest = None if choosing is None else torch.empty_like(edges.target)  # [E]
        certain = None if choosing is None else torch.empty_like(correct)  # [E]
        for start, end, own in _chunks(len(hidden), len(weight), edges):
            # 1. The logits of n positions [n,V], those of trained rows put in place.
            made = nn.functional.linear(hidden[start:end], weight, bias)
            if ids is not None and own_rows is not None:
                made.index_copy_(1, ids, nn.functional.linear(hidden[start:end], own_rows))
            logits = transform(made)
            # 2. The log-probability of each edge that reads them: its logit minus the log-sum-exp of its position.
            line, target = edges.logit[own] - start, edges.target[own]  # [e]
            picked = logits[line, target]
            highest, best = logits.max(-1)  # [n]
            correct[own] = best[line] == target
            if choosing is not None and likeliest is not None and certain is not None:
                likeliest[own], certain[own] = _chosen(logits, line, choosing)  # type: ignore[assignment]
            if transform.cap is not None:
                slopes[own] = transform.slope(picked)  # type: ignore[assignment]
            inner = transform.slope(logits) if needed and transform.cap is not None else None
            shares = torch.softmax(logits, -1)  # [n,V]
            # log-sum-exp = logit - log(share), taken at the likeliest token, whose share is never small
            total = highest - shares.gather(-1, best[:, None])[:, 0].log()
            logprobs[own] = picked - total[line]
            # 3. What the backward pass needs of the softmax: its product with the weight, trained rows apart.
            if mean is None:
                continue
            inside = shares if inner is None else shares.mul_(inner)
            if ids is not None and own_shares is not None and own_rows is not None:
                own_shares[start:end] = inside[:, ids]
                inside.index_fill_(1, ids, 0)
                trained = own_shares[start:end].to(weight.dtype) @ own_rows  # [n,H]
                mean[start:end] = torch.addmm(trained, inside.to(weight.dtype), weight)
            else:
                mean[start:end] = inside.to(weight.dtype) @ weight
        if transform.cap is None:  # the slope is the scale everywhere
            slopes.fill_(transform.scale)
            if transform.scale != 1.0:
                for each in (mean, own_shares):
                    if each is not None:
                        each.mul_(transform.scale)
        ctx.mark_non_differentiable(*(each for each in (correct, likeliest, certain) if each is not None))
        ctx.edges, ctx.weight = edges, weight
        if mean is not None:
            ctx.save_for_backward(mean, slopes, *((hidden, rows, ids, own_shares) if rows is not None else ()))
        return logprobs, correct, likeliest, certain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean, slopes, *apart = ctx.saved_tensors
        edges, weight = ctx.edges, ctx.weight
        # 1. The softmax part. Edges of one position add up in the order of the edges: the same each time.
        sums = torch.zeros(len(mean), dtype=torch.float32, device=mean.device).index_add_(0, edges.logit, gradient)
        of_hidden = mean * -sums[:, None].to(mean.dtype)  # [N,H]
        # 2. The target part: each edge pulls its hidden state towards the row of its target.
        towards, of_rows = weight[edges.target], None  # [E,H]
        sloped = gradient * slopes  # [E]
        # 3. Trained rows: they stand in as targets, and get their own gradient [K,H].
        if apart:
            hidden, rows, ids, shares = apart
            at, which = (edges.target[:, None] == ids).nonzero().unbind(1)  # edges whose target is a trained row
            towards.index_copy_(0, at, rows[which].to(weight.dtype))
            of_logits = shares * -sums[:, None]  # [N,K]
            of_logits.view(-1).index_add_(0, edges.logit[at] * len(ids) + which, sloped[at])
            of_rows = (of_logits.T @ hidden.float()).to(rows.dtype)
        of_hidden.index_add_(0, edges.logit, towards * sloped[:, None].to(weight.dtype))
        return of_hidden, None, None, None, None, None, of_rows, None


class _Pick(torch.autograd.Function):
    """logits [N,V] -> the log-probability [E] of ``target`` at position ``line``, and whether it was the likeliest."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, line: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.logsumexp(logits.float(), -1)  # [N]
        correct = logits.argmax(-1)[line] == target
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(logits, total, line, target)
        return logits[line, target].float() - total[line], correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # By logit v of position n: sum_{e of n to v} g_e - (sum_{e of n} g_e) softmax_v
        logits, total, line, target = ctx.saved_tensors
        sums = torch.zeros_like(total).index_add_(0, line, gradient)
        result = (logits - total[:, None]).exp_().mul_(-sums[:, None])
        result.view(-1).index_add_(0, line * logits.shape[-1] + target, gradient.to(result.dtype))
        return result.to(logits.dtype), None, None


def _through_module(
    layer: Any, transform: LogitTransform, hidden: Tensor, edges: Edges, choosing: torch.dtype | None
) -> Targets:
    """An output layer that trains or is adapted. The backward pass makes logits that fill several chunks again."""
    weight = getattr(_rows_apart(layer)[0], "weight", None)
    width = weight.shape[0] if isinstance(weight, Tensor) else LOGITS_AT_ONCE
    chunks = list(_chunks(len(hidden), width, edges))

    def one(part: Tensor, line: Tensor, target: Tensor) -> tuple[Tensor | None, ...]:
        logits = transform(layer(part))
        return *_Pick.apply(logits, line, target), *_chosen(logits, line, choosing)  # pyright: ignore[reportGeneralTypeIssues]

    logprobs = torch.empty(len(edges.target), dtype=torch.float32, device=hidden.device)  # [E]
    correct = torch.empty(len(edges.target), dtype=torch.bool, device=hidden.device)  # [E]
    likeliest = None if choosing is None else torch.empty_like(edges.target)  # [E]
    certain = None if choosing is None else torch.empty_like(correct)  # [E]
    for start, end, own in chunks:
        part, line, target = hidden[start:end], edges.logit[own] - start, edges.target[own]  # [n,H], [e], [e]
        if len(chunks) > 1 and torch.is_grad_enabled():
            made: Any = checkpoint(one, part, line, target, use_reentrant=False)
        else:
            made = one(part, line, target)
        logprobs = logprobs.index_copy(0, own, made[0])
        correct[own] = made[1]
        if likeliest is not None and certain is not None:
            likeliest[own], certain[own] = made[2], made[3]
    return Targets(logprobs, correct, likeliest, certain)


def _chunks(lines: int, width: int, edges: Edges) -> Iterator[tuple[int, int, Tensor]]:
    """The first position, the one behind the last, and the numbers of the edges that read these positions."""
    size = max(LOGITS_AT_ONCE // width, 1)
    for start in range(0, lines, size):
        end = min(start + size, lines)
        yield start, end, ((edges.logit >= start) & (edges.logit < end)).nonzero()[:, 0]


_transforms: WeakKeyDictionary[nn.Module, LogitTransform | None] = WeakKeyDictionary()
_skipping: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _logit_transform(base: Any) -> LogitTransform | None:
    """The transform that the config of a model names; None where it does not give the model's own logits."""
    if base not in _transforms:
        config = base.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        transform = LogitTransform(scale, getattr(config, "final_logit_softcapping", None) or None)
        _transforms[base] = transform if _gives_own_logits(base, transform) else None
    return _transforms[base]


def _gives_own_logits(base: Any, transform: LogitTransform) -> bool:
    """Compares our logits with the model's own on a few tokens, without dropout."""
    output_layer = base.get_output_embeddings()
    if output_layer is None:
        return False
    asked = _few_tokens(base)
    with evaluation_mode(base):
        expected = base(**_accepted(base, asked)).logits.float()
        try:
            decoder = base.get_decoder()
            found = transform(output_layer(decoder(**_accepted(decoder, asked)).last_hidden_state))
        except (AttributeError, RuntimeError, TypeError, ValueError):  # the decoder gives something else
            return False
    tolerance = _ROUNDINGS * torch.finfo(output_layer.weight.dtype).eps
    return expected.shape == found.shape and agree(found, expected, tolerance)


def _few_tokens(base: Any) -> dict[str, Any]:
    device = base.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device)[None] % base.config.get_text_config().vocab_size
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def _skips_unread(base: Any) -> bool:
    """Whether the last layer may skip tokens that are not read, tried once on a few tokens."""
    if base not in _skipping:
        decoder, asked = base.get_decoder(), _few_tokens(base)
        positions = torch.tensor([3, 7], device=asked["input_ids"].device)
        made = []
        with evaluation_mode(base):
            for read in (None, positions):
                with reading(read):
                    hidden = decoder(**_accepted(decoder, asked)).last_hidden_state
                made.append(hidden.flatten(0, 1)[positions])
        whole, part = made
        _skipping[base] = agree(part, whole, _ROUNDINGS * torch.finfo(whole.dtype).eps)
    return _skipping[base]
