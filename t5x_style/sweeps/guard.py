"""Becomes another program that dies with the process that started it.

Run by its path, as `python guard.py PARENT_PID COMMAND…`, so that nothing of the package is
imported on the way. A sweep that is killed with SIGKILL cannot stop its trials; the kernel can.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # Trials are resumed exactly, so the plainest signal will do, and it leaves no trial that
        # is still saving when the sweep is started again.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was asked
            sys.exit("the sweep that started this trial is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
