"""The short form of `make fuzz`: seeds that once crashed, every good document, and some new inputs each time."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.inputs import documents, inputs
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_and_good_documents_end_in_an_error_of_ours_at_most(target: str) -> None:
    for data in documents(target):
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=cast("Any", list(HealthCheck)))
@given(draw=st.data())
def test_torn_documents_end_in_an_error_of_ours_at_most(target: str, draw: st.DataObject) -> None:
    TARGETS[target](draw.draw(inputs(target)))
