"""How the process treats memory that a train step on the CPU frees."""

import ctypes
import sys

# mallopt's parameters, from malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory instead of returning it to the system; return whether it can.

    By default each large tensor is mapped and unmapped anew, and the system clears its pages at every first touch. A
    train step allocates the same sizes again and again; kept, they make its backward pass up to twice as fast.
    The peak is what it was, but a process that once needed it holds it to the end. Only the GNU C library can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
