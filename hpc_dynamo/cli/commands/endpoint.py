"""`hpc-dynamo endpoint`: the base URL of a serving run, for scripts."""

from argparse import ArgumentParser, Namespace

from hpc_dynamo.cli.arguments import add_run
from hpc_dynamo.cli.render.console import print_line
from hpc_dynamo.cli.run_lookup import find_endpoint

EXAMPLES = """\
  export OPENAI_BASE_URL=$(hpc-dynamo endpoint name=afternoon)"""
NOTES = """\
The key is in runs/NAME/api_key, the URL also in runs/NAME/url. During a job handover this is
the URL of the job that serves now."""


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)


def run(args: Namespace) -> int:
    print_line(find_endpoint(args)[1].url)
    return 0
