"""`python -m hpc_dynamo` is the command `hpc-dynamo`."""

import sys

from hpc_dynamo.cli import main

sys.exit(main())
