"""`python -m hpc_dynamo` and the command `hpc-dynamo`.

The imports take a second or two. Ctrl-C in that time ends with one line, not with a traceback.
"""

import os
import signal
import sys
from types import FrameType


def interrupted(number: int, frame: FrameType | None) -> None:
    """End this process at once, without Python's own cleanup."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def main() -> int:
    """Run the command line and return its exit code."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored
    if raises:
        signal.signal(signal.SIGINT, interrupted)
    from hpc_dynamo.cli import main as run

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    finally:
        if raises:
            signal.signal(signal.SIGINT, interrupted)


if __name__ == "__main__":
    sys.exit(main())
