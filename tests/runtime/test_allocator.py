"""Memory of freed arrays is used again."""

import platform
import subprocess
import sys

import pytest

_CODE = """
import resource, sys
import numpy as np
from speechsim_jax.runtime.allocator import keep_pages
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


_GIVE_BACK = """
import re
import numpy as np
from speechsim_jax.runtime.allocator import give_back, keep_pages
resident = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
keep_pages()
arrays = [np.ones(2**20) for _ in range(40)]  # of 8 MB
del arrays[::2]
before = resident()
give_back()
print((before - resident()) / 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_is_free_between_arrays_is_given_back_when_asked():
    command = [sys.executable, "-c", _GIVE_BACK]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
    assert 150 < float(done.stdout) < 180  # of 160 MB
