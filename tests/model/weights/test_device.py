"""TF32 is for GPUs that have it, and only while a run asks for it."""

from __future__ import annotations

import pytest
import torch

from tunesmith.errors import RecipeError
from tunesmith.model.weights.device import check_tf32, tf32


def test_tf32_is_refused_without_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="TF32 needs an NVIDIA GPU") as error:
        check_tf32(True, "cpu")
    assert error.value.where == "training.tf32"
    for setting in (None, False):
        check_tf32(setting, "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RecipeError):
        check_tf32(True, "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check_tf32(True, "cuda:0")


@pytest.mark.parametrize(("setting", "inside"), [(True, "tf32"), (False, "ieee")])
def test_products_are_afterwards_what_they_were(setting: bool, inside: str) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with tf32(setting):
        assert matmul.fp32_precision == inside
    assert matmul.fp32_precision == before
    with tf32(None):
        assert matmul.fp32_precision == before
