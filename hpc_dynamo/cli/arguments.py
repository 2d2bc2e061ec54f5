"""Arguments that several verbs have in common."""

from argparse import ArgumentParser
from pathlib import Path

RUNS_DIR = ("runs_dir=", "runs=")  # the second is the name of the previous version
RUN_HELP = "the run's name or folder, or name=NAME; the newest run if omitted"


def path(text: str) -> Path:
    """Type of an option that names a file: a shell does not expand `~` in `--option=~/file`."""
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def add_overrides(parser: ArgumentParser) -> None:
    """Add the overrides of a verb that composes a configuration."""
    _add_words(parser, "FIELD=VALUE", "see `hpc-dynamo help overrides`")


def add_run(parser: ArgumentParser, metavar: str = "RUN", more: str = "") -> None:
    """Add the reference to a run. `more` describes the verb's other arguments."""
    _add_words(parser, metavar, f"{RUN_HELP}{more}")


def _add_words(parser: ArgumentParser, metavar: str, about: str) -> None:
    parser.add_argument("overrides", nargs="*", metavar=metavar, help=about)
    about = "folder with more files for the groups of conf/"
    parser.add_argument("--config-dir", type=path, metavar="DIR", help=about)


def add_detach(parser: ArgumentParser) -> None:
    """Add `--detach`."""
    parser.add_argument("--detach", action="store_true", help="start the job and return at once")


def add_launch_options(parser: ArgumentParser) -> None:
    """Add the arguments of a verb that starts engines."""
    add_overrides(parser)
    add_detach(parser)
    about = "skip the checks of models and nodes (cluster.preflight=false)"
    parser.add_argument("--no-preflight", action="store_true", help=about)
