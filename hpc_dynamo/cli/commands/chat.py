"""`hpc-dynamo chat`: a conversation in the terminal, or one question from a script."""

import os
import sys
from argparse import ArgumentParser, Namespace
from os.path import expanduser
from pathlib import Path

from hpc_dynamo.cli.arguments import add_run
from hpc_dynamo.cli.chat.client import ChatClient
from hpc_dynamo.cli.chat.conversation import Conversation
from hpc_dynamo.cli.chat.prompt import run_prompt
from hpc_dynamo.cli.run_lookup import find_endpoint, is_run, split_words
from hpc_dynamo.errors import ConfigError, HpcDynamoError, UsageError

# prose: ignore (commands)
EXAMPLES = """\
  hpc-dynamo chat  # a conversation with the newest serving run
  hpc-dynamo chat name=afternoon "Why is the sky blue?"
  echo "Why is the sky blue?" | hpc-dynamo chat runs/afternoon --max-tokens 100 > answer.txt
  hpc-dynamo chat --url http://localhost:8000/v1 --key-file key --system 'Be brief.'"""
NOTES = ""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of the verb."""
    add_run(parser, "RUN|MESSAGE", "; the other arguments are the message")
    parser.add_argument("--url", metavar="URL", help="base URL of another OpenAI endpoint")
    about = "file with the key (the run's key; with --url: $OPENAI_API_KEY)"
    parser.add_argument("--key-file", type=expanduser, metavar="FILE", help=about)
    about = "certificate (PEM) to trust under any host name"
    parser.add_argument("--cert", type=expanduser, metavar="FILE", help=about)
    parser.add_argument("--model", metavar="NAME", help="model, if the endpoint has several")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="limit of each answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 selects greedy decoding")


def run(args: Namespace) -> int:
    """Send one message, or start a conversation on a terminal."""
    words, message = split_words(
        args.overrides, lambda word: bool(args.url) or not _refers_to_run(word)
    )
    client, model = _client(args, words)
    options = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    options = {name: value for name, value in options.items() if value is not None}
    model = args.model or model or _first(client.models())
    conversation = Conversation(client, model, options, args.system or "")
    if message:
        conversation.send(" ".join(message))
    elif not sys.stdin.isatty():
        conversation.send(_from_stdin())
    else:
        run_prompt(conversation)
    return 0


def _refers_to_run(word: str) -> bool:
    """Return True for a path or the folder of a run. Any other word belongs to the message."""
    return is_run(word) or ("/" in word and not any(c.isspace() for c in word))


def _from_stdin() -> str:
    message = sys.stdin.read().strip()
    if not message:
        raise UsageError("there is no message", hint='hpc-dynamo chat "…", or a message on stdin')
    return message


def _client(args: Namespace, words: list[str]) -> tuple[ChatClient, str]:
    """Return the client of the endpoint, and the model if it is known."""
    if args.url:
        return ChatClient(args.url, _key(args), args.cert or ""), ""
    attempt, endpoint = find_endpoint(Namespace(overrides=words, config_dir=args.config_dir))
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
        raise HpcDynamoError("the endpoint serves no model", hint="--model NAME")
    return models[0]
