"""Memory that was freed goes back to the system: glibc keeps it otherwise, spread over its arenas."""

import ctypes
import ctypes.util


def give_back() -> bool:
    """Returns free pages to the kernel (malloc_trim(3)). False where the C library has no such call (musl)."""
    trim = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "malloc_trim", None)
    return trim is not None and bool(trim(0))
