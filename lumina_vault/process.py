"""Prepare the process for the engine. Call `prepare()` once, before threads start.

- glibc's malloc maps blocks of a megabyte or more anew on each call, and every page is faulted in again: raising its
  thresholds made decompression of 1 MiB chunks about twice as fast. Where there is no glibc this does nothing.
- One arena for each worker instead of eight for each core keeps the resident size near what is in use.
- A thread that wants the GIL back waits out the switch interval (5 ms) whenever another runs Python: with native
  kernels of 0.3-3 ms that wait dominates, so the interval is made short.
- The collector of cycles walks everything alive each time; the engine makes many objects and no cycles.
- A restore holds directories open: as many descriptors as the hard limit allows.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MIB = 1 << 20
_prepared = False


def prepare() -> None:
    """Set allocator thresholds and the switch interval; idempotent."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    sys.setswitchinterval(0.0002)
    gc.set_threshold(50_000, 20, 100)
    with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it; the soft limit does for shallow trees
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt: slower, not wrong
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
            libc.mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)
            libc.mallopt(_M_ARENA_MAX, 4)


def workers() -> int:
    """Threads for native kernels: the processors this process may use, at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
