"""The command line: verbs over a composed configuration.

This file imports nothing heavy: console scripts import `main` from here. The imports that `main`
then needs take a second or two. Ctrl-C in that time ends with one line, not with a traceback.
"""

import os
import signal
from collections.abc import Sequence
from types import FrameType

__all__ = ["main"]


def interrupted(number: int, frame: FrameType | None) -> None:
    """End this process at once, without Python's own cleanup."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored
    if raises:
        signal.signal(signal.SIGINT, interrupted)
    from hpc_dynamo.cli.command_line import main as run

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(argv)
    finally:
        if raises:
            signal.signal(signal.SIGINT, interrupted)
