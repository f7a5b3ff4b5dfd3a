"""The C allocator of this process: an option that makes large CPU networks faster, off unless it is asked for.

glibc hands every large block back to the system when it is freed, and the next one is mapped and zeroed again, page by page. A network
that allocates hundreds of megabytes per batch spends a sixth of its time there. The setting holds for the whole process, whatever else
runs in it, and its memory stays at the highest level it ever had: that is why only a program of our own may choose it.
"""

import ctypes
import os
import sys

# glibc's malloc.h; see mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEEP = 2**31 - 1


def fast_malloc() -> bool:
    """Let glibc keep and reuse freed memory, in this process from now on. False where this cannot be done: no Linux, or no glibc."""
    if not sys.platform.startswith("linux") or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
    except OSError:  # musl knows the name and refuses the question
        return False
    if not version:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, KEEP) == 1
