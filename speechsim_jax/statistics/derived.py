"""What several measures derive from one representation, or from two, computed once."""

import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

Value = TypeVar("Value")
Parameters = ParamSpec("Parameters")
Owner = TypeVar("Owner", bound="DerivesOnce")


class DerivesOnce:
    """Base of what caches what is derived from it, in any thread."""

    def __init__(self) -> None:
        self._cache: dict[tuple, Any] = {}
        self._lock = threading.RLock()

    def once(
        self: Owner,
        derive: Callable[Concatenate[Owner, Parameters], Value],
        *arguments: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Value:
        """derive(self, *arguments), computed at the first call and cached."""
        with self._lock:
            key = (derive, *arguments, *named.items())
            if key not in self._cache:
                self._cache[key] = derive(self, *arguments, **named)
            return self._cache[key]

    def tell(self, value: Any, derive: Callable, *arguments: Any) -> None:
        """Cache the value of derive(self, *arguments), which is known from elsewhere."""
        with self._lock:
            self._cache[derive, *arguments] = value

    def release(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._cache.clear()
