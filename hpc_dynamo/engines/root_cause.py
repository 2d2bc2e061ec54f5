"""Root cause of a failed engine: the line of its log that gives the cause.

Engines end with follow-up messages: a parent process reports that its child failed, SGLang kills
its own process tree, libraries report leaks. The cause is the last exception before them.

Source: logs of failed starts of vLLM 0.32 and SGLang 0.5.23 (`tests/unit/engines/logs`), and code
(vllm/v1/engine/utils.py, sglang/srt/entrypoints/engine.py, srt/managers/tokenizer_manager.py);
TensorRT-LLM 1.x (executor/proxy.py).
"""

import re
from collections.abc import Iterator, Sequence

LONGEST = 400  # characters that are quoted
DETAILS = 3  # lines that may follow an exception's first
# After these messages SGLang ends itself by SIGKILL, during its start and later.
SELF_KILLED = ("Received sigquit from a child process", "SIGQUIT received. signum=")
CHILD_KILLED = re.compile(r"exit ?code:? -9\b")  # SGLang: a child was killed, not failed

# Prefix of a message: the margin of an exception group, srun's label, the process, level and time,
# [time] or [rank0]:
PREFIX = re.compile(
    r"""(?: \ +\|\ (?=\ *\S)
      | \d+:\ (?=[(\[A-Z])
      | \([\w.]+(?:\ [\w.]+)*\ pid=\d+\)\ ?
      | (?:ERROR|CRITICAL|WARNING|INFO|DEBUG)\ +\d\d-\d\d\ [\d:.,]+\ (?:\[[^\]]*\]\ ?)?
      | \[[\d/: .,-]+(?:\ [A-Z]+\d+)*\]\ ?
      | \[(?:TRT-LLM|TensorRT-LLM|rank\d+)\]:?\ ?
      | \[[EFWI]\]\ ?
    )""",
    re.VERBOSE,
)
EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception|Exit|Interrupt)(?::.*|$)"
)
USAGE = re.compile(r"[\w.-]+(?: [\w.-]+)?: error: .+")  # argparse

# Exceptions that only report another one.
FOLLOW_UP = (
    "see root cause",
    "see stack trace",
    "root cause above",
    "died unexpectedly",
    "initialization failed due to an exception in a background process",
    "scheduler died during initialization",
    "enginedeaderror",
    "childfailederror",
    "child process terminated unexpectedly",
    "executor worker returned error",
    "systemexit",
    "keyboardinterrupt",
    "cancellederror",
    "brokenpipeerror",
    "connectionreseterror",
    "connectionrefusederror",
    "eoferror",
    "broken process pool",
)
# Lines that are not exceptions and give no cause.
NOISE = (
    "nanobind: ",
    "- leaked ",
    "see https://",
    "further information visit",  # prose: ignore (text of Pydantic)
    "kill_process_tree called",
    *(sign.casefold() for sign in SELF_KILLED),
    "resource_tracker",
    "warnings.warn",
    "destroy_process_group",
    "sys:1: ",
    "srun: ",
    "you can find more",
    "+-----",  # divides exceptions of a group
    "^^^",  # marks a part of the line above, in a traceback
)


def root_cause(log: str) -> str:
    """Return the most likely cause of an engine's end, from its log; empty if the log is empty.

    It is the last exception that does not only report another, else the last line that is not
    noise, in one line; long messages are cut.
    """
    lines = [_message(line) for line in log.splitlines()]
    found = [i for i, line in enumerate(lines) if _is_error(line)]
    causes = [i for i in found if not _reports_another(_quoted(lines, i))]
    for index in (causes or found)[-1:]:
        return _shortened(_quoted(lines, index))
    return last_line(log)


def last_line(log: str) -> str:
    """Return the last line of a log that is not noise, else its last line; empty if it is empty."""
    lines = [line for each in reversed(log.splitlines()) if (line := _message(each).strip())]
    telling = [line for line in lines if not _is_noise(line)]
    return _shortened(next(iter(telling or lines), ""))


def killed_itself(log: str) -> bool:
    """Return True if an engine killed itself by SIGKILL, since a child failed."""
    return any(sign in log for sign in SELF_KILLED) and not CHILD_KILLED.search(log)


def _message(line: str) -> str:
    """Return a line without the prefix before the message; its indentation is kept."""
    while prefix := PREFIX.match(line):
        line = line[prefix.end() :]
    return line.rstrip()


def _is_error(line: str) -> bool:
    return bool(EXCEPTION.match(line) or USAGE.match(line)) and not _is_noise(line)


def _reports_another(text: str) -> bool:
    lowered = text.casefold()
    return any(sign in lowered for sign in FOLLOW_UP)


def _is_noise(line: str) -> bool:
    lowered = line.casefold()
    return any(sign in lowered for sign in NOISE)


def _quoted(lines: Sequence[str], index: int) -> str:
    """Return an exception in one line, with its class's bare name. Messages of Pydantic, and those
    that start with an empty line, continue in the lines below."""
    first = lines[index].strip()
    kind, _, message = first.partition(":")
    if EXCEPTION.match(first):
        kind = kind.rpartition(".")[2]
    parts = [kind, message.strip()]
    if not parts[1] or kind.endswith("ValidationError"):
        parts += _details(lines[index + 1 : index + 1 + DETAILS])
    return ": ".join(filter(None, parts))


def _details(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines below an exception, to the first that is indented (Pydantic's format)."""
    for line in filter(None, lines):
        if _is_error(line) or _is_noise(line) or line.startswith(("Traceback", "During ")):
            return
        yield line.partition(" [type=")[0].strip()
        if line.startswith(" "):
            return


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"
