"""Hidden states -> log-probabilities of the targets. Logits exist only where a label needs them, a chunk at a time.

The decoder gives the hidden states; the output layer and what the model does to its logits (scaling, soft-capping) are
applied here, after they were compared once with the model's own logits. A model for which they differ projects itself,
through ``logits_to_keep``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tunesmith.data.batches.layout import Batch, Edges
from tunesmith.model.compute.attention import forward_arguments, laid_out
from tunesmith.model.compute.fused_modules import reading
from tunesmith.model.compute.limits import CHUNK
from tunesmith.model.modes import evaluation_mode

AGREE = 8.0  # times the rounding of the dtype: how near the model's own logits ours must be


@dataclass(frozen=True, slots=True)
class Targets:
    """For each edge of a batch [E]: its log-probability (fp32) and whether it was the likeliest token."""

    logprobs: Tensor
    correct: Tensor


def target_logprobs(model: nn.Module, batch: Batch) -> Targets:
    """One forward pass over a batch that is already on the model's device. Gradients flow through ``logprobs``."""
    base = _base(model)
    form = _form(base)
    leaves = form is not None and not _recomputes(base) and _leaves_unread(base)
    with laid_out(batch):
        if base is None or form is None:
            return Targets(*_Pick.apply(_own_logits(model, batch), batch.edges.logit, batch.edges.target))
        decoder, places = base.get_decoder(), batch.predicts.flatten().nonzero()[:, 0]
        arguments = _accepted(decoder, {**forward_arguments(batch), "use_cache": False})
        with reading(places if leaves and len(places) < batch.computed else None):
            hidden = decoder(**arguments).last_hidden_state
    kept = hidden.flatten(0, 1).index_select(0, places)
    head = base.get_output_embeddings()
    linear, rows = _apart(head)
    if _is_plain(linear) and not any(own.requires_grad for own in linear.parameters()):
        ids, weight = (None, None) if rows is None else (rows.ids, rows.weight)
        return Targets(*_FrozenHead.apply(kept, linear.weight, linear.bias, form, batch.edges, ids, weight))
    return _through_module(head, form, kept, batch.edges)


def target_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own logits at every edge, fp32 [E, V]: all at a time, so for few rows. No gradients are kept."""
    with torch.no_grad(), laid_out(batch):
        return _own_logits(model, batch)[batch.edges.logit].float()


def _recomputes(base: nn.Module) -> bool:
    """A layer that is computed again in the backward pass must find then what it found first."""
    return base.training and any(getattr(module, "gradient_checkpointing", False) for module in base.modules())


def _own_logits(model: Any, batch: Batch) -> Tensor:
    """[N, V], one line for each True of ``predicts``, also from a model that makes all its logits whatever is asked."""
    arguments = {**forward_arguments(batch), "logits_to_keep": batch.predicts, "use_cache": False}
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    logits = model(**_accepted(inner, arguments)).logits
    if logits.shape[:2] == batch.predicts.shape:
        return logits[batch.predicts]
    logits = logits.reshape(-1, logits.shape[-1])
    assert len(logits) == int(batch.predicts.sum()), "logits of other places than were asked for"
    return logits


def _accepted(called: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the model's own ``forward`` takes: a state-space model or one of hub code may know no positions."""
    known = signature(called.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in known}


def _is_plain(head: Any) -> bool:
    """A linear layer whose weight and bias are all that it computes with."""
    return type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of an output layer that stand for its own and train: ids [K], weight [K, H]."""

    ids: Tensor
    weight: Tensor


def _apart(head: Any) -> tuple[Any, Rows | None]:
    """An output layer under PEFT's trained rows, and these; known by name, because importing PEFT takes seconds."""
    if type(head).__name__ != "TrainableTokensWrapper" or head._forward_hooks or head._forward_pre_hooks:
        return head, None
    adapter, names = head.token_adapter, head.active_adapters
    if head.disable_adapters:
        return (head, None) if adapter.merged else (adapter.base_layer, None)
    if adapter.merged or len(names) != 1 or names[0] not in adapter.trainable_tokens_delta:
        return head, None
    if adapter.base_layer.bias is not None:  # which PEFT leaves out
        return head, None
    weight = adapter.trainable_tokens_delta[names[0]]
    return adapter.base_layer, Rows(torch.tensor(adapter.token_indices[names[0]], device=weight.device), weight)


@dataclass(frozen=True, slots=True)
class Form:
    """What a model does to the output layer's logits: ``cap * tanh(scale * logits / cap)``, or scaling alone."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """In fp32."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative, from the logits that came out."""
        return self.scale if self.cap is None else (1 - (logits / self.cap) ** 2) * self.scale


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities and their gradient in one pass over chunks, for an output layer that does not train.

    The gradient of sum_e g_e logprob_e, where edge e reads hidden state h_n and has target t, is, by h_n,
    sum_e g_e W[t] - (sum_e g_e) softmax(W h_n) W. The product softmax W does not depend on g, so it is made while the
    logits are at hand: no logits are kept, none are made twice, and any objective may come after.

    A few rows may train: ``rows`` [K, H] stand for those of ``weight`` at ``ids`` [K]. Their gradient is, by row k,
    sum_n (sum_{e of n to k} g_e - (sum_{e of n} g_e) softmax(W h_n)_k) h_n, so K shares of each softmax are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        form: Form,
        edges: Edges,
        ids: Tensor | None,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        needed = hidden.requires_grad or (rows is not None and rows.requires_grad)
        logprobs = torch.empty(len(edges.target), dtype=torch.float32, device=hidden.device)
        slopes = torch.ones_like(logprobs)
        correct = torch.empty(len(edges.target), dtype=torch.bool, device=hidden.device)
        mean = torch.empty_like(hidden) if needed else None
        own_rows = None if rows is None else rows.to(weight.dtype)
        own_shares = None if ids is None else torch.empty(len(hidden), len(ids), device=hidden.device)
        for start, end, own in _chunks(len(hidden), len(weight), edges):
            made = nn.functional.linear(hidden[start:end], weight, bias)
            if ids is not None and own_rows is not None:
                made.index_copy_(1, ids, nn.functional.linear(hidden[start:end], own_rows))
            logits = form(made)
            line, target = edges.logit[own] - start, edges.target[own]
            picked = logits[line, target]
            highest, best = logits.max(-1)
            correct[own] = best[line] == target
            if form.cap is not None:
                slopes[own] = form.slope(picked)  # type: ignore[assignment]
            inner = form.slope(logits) if needed and form.cap is not None else None
            shares = torch.softmax(logits, -1)
            # log-sum-exp by way of the likeliest token, whose share is never small
            total = highest - shares.gather(-1, best[:, None])[:, 0].log()
            logprobs[own] = picked - total[line]
            if mean is not None:
                inside = shares if inner is None else shares.mul_(inner)
                if ids is not None and own_shares is not None and own_rows is not None:
                    own_shares[start:end] = inside[:, ids]
                    inside.index_fill_(1, ids, 0)
                    mean[start:end] = torch.addmm(
                        own_shares[start:end].to(weight.dtype) @ own_rows, inside.to(weight.dtype), weight
                    )
                else:
                    mean[start:end] = inside.to(weight.dtype) @ weight
        if form.cap is None:
            slopes.fill_(form.scale)
            if form.scale != 1.0:
                for each in (mean, own_shares):
                    if each is not None:
                        each.mul_(form.scale)
        ctx.mark_non_differentiable(correct)
        ctx.edges, ctx.weight = edges, weight
        if mean is not None:
            ctx.save_for_backward(mean, slopes, *((hidden, rows, ids, own_shares) if rows is not None else ()))
        return logprobs, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean, slopes, *apart = ctx.saved_tensors
        edges, weight = ctx.edges, ctx.weight
        # Sorted by logit or not, edges of one logit add up in the order of the edges: the same each time.
        sums = torch.zeros(len(mean), dtype=torch.float32, device=mean.device).index_add_(0, edges.logit, gradient)
        of_hidden = mean * -sums[:, None].to(mean.dtype)
        towards, of_rows = weight[edges.target], None
        sloped = gradient * slopes
        if apart:
            hidden, rows, ids, shares = apart
            at, which = (edges.target[:, None] == ids).nonzero().unbind(1)
            towards.index_copy_(0, at, rows[which].to(weight.dtype))
            of_logits = shares * -sums[:, None]
            of_logits.view(-1).index_add_(0, edges.logit[at] * len(ids) + which, sloped[at])
            of_rows = (of_logits.T @ hidden.float()).to(rows.dtype)
        of_hidden.index_add_(0, edges.logit, towards * sloped[:, None].to(weight.dtype))
        return of_hidden, None, None, None, None, None, of_rows


class _Pick(torch.autograd.Function):
    """logits [N, V] -> log-probability [E] of ``target`` at line ``line``, and whether it was the likeliest."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, line: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.logsumexp(logits.float(), -1)
        correct = logits.argmax(-1)[line] == target
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(logits, total, line, target)
        return logits[line, target].float() - total[line], correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, total, line, target = ctx.saved_tensors
        sums = torch.zeros_like(total).index_add_(0, line, gradient)
        result = (logits - total[:, None]).exp_().mul_(-sums[:, None])
        result.view(-1).index_add_(0, line * logits.shape[-1] + target, gradient.to(result.dtype))
        return result.to(logits.dtype), None, None


def _through_module(head: Any, form: Form, hidden: Tensor, edges: Edges) -> Targets:
    """An output layer that trains or is adapted: where its logits are many, the backward pass makes them again."""
    weight = getattr(_apart(head)[0], "weight", None)
    width = weight.shape[0] if isinstance(weight, Tensor) else CHUNK
    chunks = list(_chunks(len(hidden), width, edges))

    def one(part: Tensor, line: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return _Pick.apply(form(head(part)), line, target)  # type: ignore[return-value]

    logprobs = torch.empty(len(edges.target), dtype=torch.float32, device=hidden.device)
    correct = torch.empty(len(edges.target), dtype=torch.bool, device=hidden.device)
    for start, end, own in chunks:
        part, line, target = hidden[start:end], edges.logit[own] - start, edges.target[own]
        if len(chunks) > 1 and torch.is_grad_enabled():
            made: Any = checkpoint(one, part, line, target, use_reentrant=False)
        else:
            made = one(part, line, target)
        logprobs = logprobs.index_copy(0, own, made[0])
        correct[own] = made[1]
    return Targets(logprobs, correct)


def _chunks(lines: int, width: int, edges: Edges) -> Iterator[tuple[int, int, Tensor]]:
    """First line, the one behind the last, and the edges that read these lines [indices]."""
    size = max(CHUNK // width, 1)
    for start in range(0, lines, size):
        end = min(start + size, lines)
        yield start, end, ((edges.logit >= start) & (edges.logit < end)).nonzero()[:, 0]


def _base(model: Any) -> Any:
    """The causal language model under an adapter; None where the adapter adds tokens of its own."""
    if hasattr(model, "get_base_model"):
        return None if model.active_peft_config.is_prompt_learning else model.get_base_model()
    return model


_forms: WeakKeyDictionary[nn.Module, Form | None] = WeakKeyDictionary()
_leaving: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _form(base: Any) -> Form | None:
    """What the model does to its logits, by its config; None where that does not give the model's own logits."""
    if base is None:
        return None
    if base not in _forms:
        form = _form_by_config(base.config.get_text_config())
        _forms[base] = form if _agrees(base, form) else None
    return _forms[base]


def _form_by_config(config: Any) -> Form:
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Form(scale, getattr(config, "final_logit_softcapping", None) or None)


def _agrees(base: Any, form: Form) -> bool:
    """Compares on a few tokens, without dropout and without a change of mode."""
    head = base.get_output_embeddings()
    if head is None:
        return False
    asked = _few_tokens(base)
    with evaluation_mode(base):
        expected = base(**_accepted(base, asked)).logits.float()
        try:
            decoder = base.get_decoder()
            found = form(head(decoder(**_accepted(decoder, asked)).last_hidden_state))
        except (AttributeError, RuntimeError, TypeError, ValueError):  # a decoder of another shape
            return False
    allowed = AGREE * torch.finfo(head.weight.dtype).eps * expected.abs().max()
    return expected.shape == found.shape and bool((expected - found).abs().max() <= allowed)


def _few_tokens(base: Any) -> dict[str, Any]:
    device = base.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device)[None] % base.config.get_text_config().vocab_size
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def _leaves_unread(base: Any) -> bool:
    """Whether the last layer may leave out tokens that are not read: tried once on a few."""
    if base not in _leaving:
        decoder, asked = base.get_decoder(), _few_tokens(base)
        places = torch.tensor([3, 7], device=asked["input_ids"].device)
        made = []
        with evaluation_mode(base):
            for read in (None, places):
                with reading(read):
                    hidden = decoder(**_accepted(decoder, asked)).last_hidden_state
                made.append(hidden.flatten(0, 1)[places])
        whole, part = made
        allowed = AGREE * torch.finfo(whole.dtype).eps * whole.abs().max()
        _leaving[base] = bool((whole - part).abs().max() <= allowed)
    return _leaving[base]
