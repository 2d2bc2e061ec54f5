"""Reset inherited state before any import, so that child processes of tests do not get it."""

import os
import signal

# The readline of a parent pytest process sets these; terminals would all have 80 columns.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Background jobs of a shell ignore SIGINT, and children that must end by Ctrl-C inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
