"""Becomes another program, which dies with the process that started it.

It is run by its path, as `python guard.py PARENT_PID COMMAND…`, so that it imports nothing of the
package. A sweep that is killed with SIGKILL cannot stop its trials, but the kernel can.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # Trials resume exactly, so SIGKILL is safe. It leaves no trial that still saves when the
        # sweep is started again.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            sys.exit("the sweep that started this trial is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
