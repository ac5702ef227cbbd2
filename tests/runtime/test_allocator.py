"""What is freed stays: counted in pages that the kernel hands out, not in seconds."""

import json
import os
import subprocess
import sys

import pytest

from rlhf_jax.runtime import allocator

FAULTS = """
import json, resource, sys
import numpy as np
from rlhf_jax.runtime.allocator import keep_memory

def again():
    np.ones(2**23).sum()  # 64 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = again()
print(json.dumps([usual, keep_memory(), again()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
def test_a_block_that_was_freed_is_not_faulted_in_again() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, env=environment, check=True)
    usual, told, kept = json.loads(done.stdout)
    # Some pages of numpy's own; huge pages make the usual number small too.
    assert told and kept <= min(100, usual)


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    assert allocator.keep_memory() is False
