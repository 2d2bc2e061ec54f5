"""Interactive prompt of `hpc-dynamo chat`."""

from contextlib import suppress

from hpc_dynamo.cli.chat.conversation import OUT, Conversation
from hpc_dynamo.cli.render.console import SafeConsole
from hpc_dynamo.errors import HpcDynamoError

ERR = SafeConsole(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

COMMANDS = (
    "/clear starts a new conversation, /system TEXT sets the system prompt, /exit or Ctrl-D ends"
)


def run_prompt(conversation: Conversation) -> None:
    """Read messages until Ctrl-D. Ctrl-C stops an answer or clears the line."""
    with suppress(ImportError):  # optional in Python; importing it is enough
        import readline  # noqa: F401
    OUT.print(f"{conversation.model} at {conversation.client.url}\n{COMMANDS}", style="dim")
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
            if not _run_command(conversation, line):
                return
        elif line:
            _send(conversation, line)


def _send(conversation: Conversation, line: str) -> None:
    try:
        conversation.send(line)
    except KeyboardInterrupt:
        OUT.print("stopped", style="dim")
    except HpcDynamoError as e:
        ERR.print(f"error: {e}")


def _run_command(conversation: Conversation, line: str) -> bool:
    """Return False to end the conversation."""
    name, _, rest = line.partition(" ")
    match name:
        case "/exit" | "/quit":
            return False
        case "/clear":
            conversation.turns.clear()
            OUT.print("new conversation", style="dim")
        case "/system":
            conversation.system = rest.strip()
            OUT.print(f"system: {conversation.system or 'none'}", style="dim")
        case _:
            OUT.print(COMMANDS, style="dim")
    return True
