"""Budgets of device memory in which a comparison takes several passes."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from speechsim_jax.errors import UserError

# Two to six passes of most tiny comparisons. In the least budget one makes 28, and in 1.2 times as
# much eleven, each with programs of its own.
_SEVERAL = 1.4


def least_gb(compare: Callable[..., Any], *arguments: Any, **settings: Any) -> float:
    """The smallest budget in which a comparison can be made, by its refusal of a smaller one."""
    with pytest.raises(UserError, match=r"give at least \d+ \(") as raised:
        compare(*arguments, **settings, device_memory_gb=1e-6)
    found = re.search(r"at least (\d+)", str(raised.value))
    assert found
    return int(found[1]) / 1e9


def several_passes_gb(compare: Callable[..., Any], *arguments: Any, **settings: Any) -> float:
    """A budget in which a comparison takes a few passes."""
    return _SEVERAL * least_gb(compare, *arguments, **settings)
