"""`python -m hpc_dynamo` and the command `hpc-dynamo`."""

import sys

from hpc_dynamo.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
