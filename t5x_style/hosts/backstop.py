"""An end of the process that needs nothing of Python: for a main thread that never lets go of it.

Python's threads run one at a time. A thread that waits inside of C code, and keeps the others from
running, also stops the watchdog's. So the kernel has a timer, which the watchdog puts off while it
runs.
"""

import ctypes
import faulthandler

from t5x_style.errors import EXIT_AGAIN

STANDARD_ERROR = 2
CLOCK_MONOTONIC = 1
SIGEV_THREAD = 2


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux: call a function in a new thread."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("unused", ctypes.c_int * 8),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`: seconds and nanoseconds of a repetition, and of the first time."""

    _fields_ = (("repeated", ctypes.c_long * 2), ("first", ctypes.c_long * 2))


class Backstop:
    """Ends the process after a time, unless it is put off."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        leave = ctypes.cast(self._libc._exit, ctypes.c_void_p)
        event = _Event(EXIT_AGAIN, 0, SIGEV_THREAD, leave.value, None)
        self._timer = ctypes.c_void_p()
        self._check(
            self._libc.timer_create(CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer))
        )

    def put_off(self, seconds: float) -> None:
        """Dump all stacks to standard error so many seconds from now; a second later, exit with 75.

        A second call replaces the first.
        """
        faulthandler.dump_traceback_later(seconds, file=STANDARD_ERROR)
        self._set(seconds + 1.0)

    def cancel(self) -> None:
        """Never mind. It may be put off again."""
        faulthandler.cancel_dump_traceback_later()
        self._set(0.0)

    def _set(self, seconds: float) -> None:
        whole = int(seconds)
        first = (whole, int((seconds - whole) * 1e9))
        times = _Times((0, 0), first)
        self._check(self._libc.timer_settime(self._timer, 0, ctypes.byref(times), None))

    def _check(self, failed: int) -> None:
        if failed:
            raise OSError(ctypes.get_errno(), "the kernel refuses a timer")
