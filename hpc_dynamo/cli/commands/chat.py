"""`hpc-dynamo chat`: a conversation in the terminal, or one question from a script."""

import os
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from hpc_dynamo.cli.chat.client import ChatClient
from hpc_dynamo.cli.chat.conversation import OUT, Conversation
from hpc_dynamo.cli.run_lookup import find_endpoint, is_run, split_words
from hpc_dynamo.errors import ConfigError, HpcDynamoError, UsageError

ERR = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

COMMANDS = "/clear forgets the conversation, /system TEXT sets the stage, /exit leaves (or Ctrl-D)"


def chat(args: Namespace) -> int:
    """Talk to the endpoint of a run, or to any other."""
    words, message = split_words(
        args.overrides, lambda word: bool(args.url) or not _means_run(word)
    )
    api, model = _endpoint(args, words)
    options = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    options = {name: value for name, value in options.items() if value is not None}
    model = args.model or model or _first(api.models())
    conversation = Conversation(api, model, options, args.system or "")
    if message:
        conversation.send(" ".join(message))
    elif not sys.stdin.isatty():
        conversation.send(_from_stdin())
    else:
        _repl(conversation)
    return 0


def _means_run(word: str) -> bool:
    """A path, or a run's folder. Anything else is the message."""
    return is_run(word) or ("/" in word and not any(c.isspace() for c in word))


def _from_stdin() -> str:
    message = sys.stdin.read().strip()
    if not message:
        raise UsageError("there is no message", hint='hpc-dynamo chat "…", or a message on stdin')
    return message


def _endpoint(args: Namespace, words: list[str]) -> tuple[ChatClient, str]:
    """Where to ask, and for which model if that is known."""
    if args.url:
        return ChatClient(args.url, _key(args), args.cert or ""), ""
    where = Namespace(overrides=words, config_dir=args.config_dir)
    attempt, endpoint = find_endpoint(where)
    key = _read(args.key_file or endpoint.key_file)
    cert = args.cert or (attempt.config().serve.tls_cert if endpoint.tls else "")
    if len(endpoint.models) > 1 and not args.model:
        what = f"this run serves several models: {', '.join(endpoint.models)}"
        raise UsageError(what, hint=f"--model {endpoint.model}")
    return ChatClient(endpoint.url, key, cert), endpoint.model


def _key(args: Namespace) -> str:
    return _read(args.key_file) if args.key_file else os.environ.get("OPENAI_API_KEY", "")


def _read(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except PermissionError:
        raise  # `main` reports it with the owner and what to ask for
    except OSError as e:
        raise ConfigError(f"{file} cannot be read: {e.strerror}", hint="--key-file FILE") from e


def _first(models: list[str]) -> str:
    if not models:
        raise HpcDynamoError("no model is served there", hint="--model NAME")
    return models[0]


def _repl(conversation: Conversation) -> None:
    """Ctrl-C stops an answer or empties the line; Ctrl-D leaves."""
    with suppress(ImportError):  # some Pythons are built without it; importing it is all it needs
        import readline  # noqa: F401
    OUT.print(f"{conversation.model} at {conversation.api.url}\n{COMMANDS}", style="dim")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            OUT.print()
            return
        except KeyboardInterrupt:
            OUT.print()
            continue
        if line.startswith("/"):
            if not _command(conversation, line):
                return
        elif line:
            _turn(conversation, line)


def _turn(conversation: Conversation, line: str) -> None:
    try:
        conversation.send(line)
    except KeyboardInterrupt:
        OUT.print("stopped", style="dim")
    except HpcDynamoError as e:
        ERR.print(f"error: {e}")


def _command(conversation: Conversation, line: str) -> bool:
    """False to leave."""
    name, _, rest = line.partition(" ")
    match name:
        case "/exit" | "/quit":
            return False
        case "/clear":
            conversation.turns.clear()
            OUT.print("a new conversation", style="dim")
        case "/system":
            conversation.system = rest.strip()
            OUT.print(f"system: {conversation.system or 'none'}", style="dim")
        case _:
            OUT.print(COMMANDS, style="dim")
    return True
