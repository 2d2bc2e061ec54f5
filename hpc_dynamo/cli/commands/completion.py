"""`hpc-dynamo completion`: print the completion script of a shell."""

from argparse import ArgumentParser, Namespace

from hpc_dynamo.cli.completion.scripts import SCRIPTS

EXAMPLES = """\
  hpc-dynamo completion bash > ~/.local/share/bash-completion/completions/hpc-dynamo
  hpc-dynamo completion zsh > ~/.zfunc/_hpc-dynamo
  hpc-dynamo completion fish > ~/.config/fish/completions/hpc-dynamo.fish"""
NOTES = """\
For the current shell only: `eval "$(hpc-dynamo completion bash)"`.
zsh needs `fpath+=(~/.zfunc)` before `compinit` in `~/.zshrc`."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=SCRIPTS, help="shell that completes hpc-dynamo")
    parser.set_defaults(overrides=[])


def run(args: Namespace) -> int:
    print(SCRIPTS[args.shell], end="")
    return 0
