"""Freed memory stays with the process, unless the user says otherwise."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from fiducial.run.allocator import keep_freed_memory
print(keep_freed_memory())
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"x" * 100_000_000
    del block
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(variables):
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True)
    was_set, first, second = done.stdout.split()
    return was_set == "True", int(first), int(second)


@pytest.mark.skipif(sys.platform != "linux", reason="another allocator")
class TestKeepFreedMemory:
    def test_a_block_is_cleared_by_the_system_once(self):
        was_set, first, second = run({})
        assert was_set
        assert first > 40 * second + 1000  # pages of 4 kB, or fewer that are larger

    @pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
    def test_what_the_user_says_counts(self, name):
        was_set, first, second = run({name: ""})
        assert not was_set
        assert second > 0.9 * first
