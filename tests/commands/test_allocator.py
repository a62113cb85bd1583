"""Memory of freed arrays is used again."""

import platform
import subprocess
import sys

import pytest

_CODE = """
import resource, sys
import numpy as np
from speechsim_jax.commands.allocator import keep_pages
keep_pages()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**23)
before = faults()
for _ in range(20):
    np.ones(2**23)
print(faults() - before)
"""


def faults(**environment: str) -> int:
    """Pages that the system handed out for twenty arrays of 64 MB, one after the other."""
    command = [sys.executable, "-c", _CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_pages_are_kept_unless_the_environment_decides():
    assert 20 * faults() < faults(MALLOC_ARENA_MAX="2")
