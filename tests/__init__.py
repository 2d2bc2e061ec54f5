"""Undoes, before anything is imported, what a test's children would inherit from its starter."""

import os
import signal

# readline in the first of several pytest processes sets these: every terminal had 80 columns.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# A shell's background job ignores it, and so would all that is to end by Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
