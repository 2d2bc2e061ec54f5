"""The command line: verbs over a composed configuration."""

from hpc_dynamo.cli.main import main

__all__ = ["main"]
