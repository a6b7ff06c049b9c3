"""What cannot be measured beside a verdict costs no verdict, and a bug is raised."""

from __future__ import annotations

import errno

import pytest

from tunesmith.errors import ModelError, ran_out
from tunesmith.evaluation.not_measured import NotMeasured

NOT_MAPPED = "sklearn/_loss/_loss.cpython-311-x86_64-linux-gnu.so: failed to map segment from shared object"
MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
    ImportError(NOT_MAPPED),
]
BUGS = [
    ImportError("cannot import name x"),
    RuntimeError("mat1 and mat2"),
    OSError(errno.EIO, "x"),
    ValueError(NOT_MAPPED),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_is_a_reason_also_while_a_library_is_loaded(error: Exception) -> None:
    left_out = NotMeasured()
    with left_out.noting("baselines.linear"):
        raise error
    assert ran_out(error) and "Memory ran out" in left_out.reasons["baselines.linear"]


def test_a_message_to_the_user_is_a_reason() -> None:
    left_out = NotMeasured()
    with left_out.noting("probe"):
        raise ModelError("The prompt is too long", where="prompt 3")
    assert left_out.reasons == {"probe": "The prompt is too long (prompt 3)."}


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_any_other_error_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)), NotMeasured().noting("probe"):
        raise error
    assert not ran_out(error)
