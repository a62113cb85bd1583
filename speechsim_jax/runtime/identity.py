"""What a job is, everything that can change its numbers, and how two jobs differ."""

import json
from collections.abc import Mapping
from typing import Any


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity in the form in which it is read back: tuples are lists in JSON."""
    return json.loads(json.dumps(identity))


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs first between two identities, in words; None if they are equal.

    >>> difference({"seed": 1, "models": {}}, {"seed": 2, "models": {}})
    'seed was 1 and is 2 now'
    """
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            return _difference(name, then.get(name), now.get(name))
    return None


def _difference(name: str, then: Any, now: Any) -> str:
    """A description of what has changed; for mappings, which entries."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return f"{name} was {then!r} and is {now!r} now"
    parts = [f"{key} is missing" for key in then if key not in now]
    parts += [f"{key} is new" for key in now if key not in then]
    for key in then.keys() & now.keys():
        if isinstance(then[key], str) and then[key] != now[key]:
            parts.append(f"{key} was {then[key]!r} and is {now[key]!r} now")
        elif then[key] != now[key]:
            parts.append(f"{key} has changed")
    return f"{name}: {', '.join(sorted(parts))}"
