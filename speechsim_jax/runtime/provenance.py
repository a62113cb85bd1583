"""The record of how a result was computed: versions, device, time, and what the caller adds."""

import datetime
import importlib.metadata
import platform
from typing import Any

import jax

_PACKAGES = (
    "speechsim_jax", "jax", "jaxlib", "flax", "numpy", "scipy", "soundfile", "soxr",
)  # fmt: skip


def record(**facts: Any) -> dict[str, Any]:
    """The facts, with versions of the libraries that there are, device and the time (UTC)."""
    device = jax.local_devices()[0]
    return {
        **facts,
        "versions": {
            "python": platform.python_version(),
            **{name: version for name in _PACKAGES if (version := _version(name))},
        },
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.local_device_count(),
            "machine": platform.machine(),
        },
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
