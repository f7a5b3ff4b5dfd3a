import json
import subprocess
import sys

import pytest

from percepta.memory import fast_malloc

FAULTS = """
import ctypes, json, resource
from percepta.memory import fast_malloc
def pages():  # malloc, touch one byte per page, free
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block = libc.malloc(64 * 2**20)
        ctypes.memset(block, 1, 64 * 2**20)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = pages()
done = fast_malloc()
print(json.dumps([done, plain, pages()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again() -> None:
    """In a process of its own, because the setting stays."""
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    done, plain, fast = json.loads(run.stdout)
    assert not done or fast < plain / 5, f"{plain} page faults before, {fast} after"


def test_elsewhere_it_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert fast_malloc() is False
