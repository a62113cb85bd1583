"""Every file that is read back is checked (many more damages: `python -m tests.support.damage`)."""

import pytest

from tests.support import damage


@pytest.mark.slow
def test_every_damage_is_noticed(tmp_path):
    counts = damage.run(tmp_path, flips=18, truncations=18, seed=1)
    assert counts["refused"] + counts["good state used"] == 36, counts
    assert counts["good state used"] > 3 and counts["refused"] > 3
