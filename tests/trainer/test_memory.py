import subprocess
import sys

import pytest

# Allocates 64 MiB again and again and prints how many pages the system had to supply once the heap has settled.
PROGRAM = """
import resource, torch
from nnunet_ad.trainer.memory import keep_freed_memory
keep = {keep} and keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(20):
    if i == 10:
        before = faults()
    torch.ones(2**24)
print(keep, faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only the GNU C library can keep freed memory")
def test_freed_memory_is_used_again():
    counts = {}
    for keep in (False, True):
        program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
        said, count = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()
        counts[keep] = int(count)
        if keep and said == "False":
            pytest.skip("the C library of this machine is not GNU's")
    assert counts[True] * 4 < counts[False]
