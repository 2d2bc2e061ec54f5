"""`hpc-dynamo chat` with a simulator, and with a scripted server."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.config import Config
from tests.support.runs import HANG_S, hpc_dynamo, until
from tests.support.simulator import KEY, MODEL, Rank, simulator
from tests.support.terminal import (
    Call,
    Process,
    announce,
    caller,
    end,
    ends,
    new_run,
    on_a_terminal,
    printed,
    refused,
    report,
)


class Server:
    """A scripted server: sets its next answer, and reads the requests that it received."""

    def __init__(self, folder: Path, port: int, scheme: str) -> None:
        self.folder, self.url = folder, f"{scheme}://127.0.0.1:{port}/v1"

    def answers(self, *pieces: str | float) -> None:
        (self.folder / "answer.json").write_text(json.dumps(pieces))

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(row) for row in (self.folder / "asked.jsonl").read_text().splitlines()]


@contextmanager
def scripted(folder: Path, *tls: str) -> Iterator[Server]:
    folder.mkdir()
    argv = [sys.executable, "-m", "tests.support.scripted_engine", str(folder), *tls]
    root = Path(__file__).parents[3]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout
            yield Server(folder, int(process.stdout.readline()), "https" if tls else "http")
        finally:
            process.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with scripted(tmp_path / "server") as server:
        server.answers(*said("Hello", " you"))
        yield server


def said(*words: str, tokens: int = 9) -> list[str | float]:
    """Return a complete answer as vLLM streams it."""
    deltas: list[dict[str, Any]]
    deltas = [{"choices": [{"delta": {"content": word}}], "usage": None} for word in words]
    last: dict[str, Any] = {"choices": [], "usage": {"completion_tokens": tokens}}
    return [*(event(chunk) for chunk in (*deltas, last)), "data: [DONE]\n\n"]


def event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return caller(tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="module")
def rank() -> Iterator[Rank]:
    with simulator("--mean-output-tokens", "500") as rank:
        yield rank


def to(rank: Rank, folder: Path, key: str = KEY) -> list[str]:
    (folder / "key").write_text(f"{key}\n")
    return ["--url", rank.url, "--key-file", "key"]


def test_chat_prints_the_answer_to_one_message(rank: Rank, call: Call, tmp_path: Path) -> None:
    words = to(rank, tmp_path)
    text = printed(call("chat", *words, "--max-tokens", "12", "--temperature", "0", "Hi there"))
    assert len(text.split()) == 12
    assert text.endswith("\n")


def test_chat_reads_the_message_from_stdin(rank: Rank, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "hpc_dynamo", "chat", *to(rank, tmp_path), "--max-tokens=3"]
    options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(argv, input="Hi there\n", **options)
    assert (done.returncode, len(done.stdout.split())) == (0, 3), done.stderr
    nothing = subprocess.run(argv, input=" \n", **options)
    refused(nothing, "there is no message")


def test_chat_refuses_a_wrong_key_and_an_unknown_model(
    rank: Rank, call: Call, tmp_path: Path
) -> None:
    refused(call("chat", *to(rank, tmp_path, "wrong"), "Hi"), "answered 401", "--key-file FILE")
    words = [*to(rank, tmp_path), "--model", "dem0"]
    refused(call("chat", *words, "Hi"), "model='dem0' is not known", f"known: {MODEL}")


def test_chat_without_an_endpoint_is_an_error(call: Call) -> None:
    done = call("chat", "--url", "http://127.0.0.1:1/v1", "--model", "m", "Hi")
    refused(done, "http://127.0.0.1:1/v1 does not answer", "refused", "hpc-dynamo status", code=1)
    refused(call("chat", "--url", "localhost:8000", "Hi"), "is not a base URL", "http://localhost")
    refused(call("chat", "--url", "http://h", "--key-file", "no", "Hi"), "no cannot be read")


def test_chat_sends_messages_key_and_options(
    server: Server, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    words = ["--system", "Be brief.", "--max-tokens", "5", "--temperature", "0.5"]
    base = server.url.removesuffix("/v1")
    assert printed(call("chat", "--url", base, *words, "What", "is", "x=3?")) == "Hello you\n"
    assert server.asked() == [
        {
            "key": "Bearer from the environment",
            "model": "scripted",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is x=3?"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 5,
            "temperature": 0.5,
        }
    ]


@pytest.mark.parametrize("size", [1, 7])
def test_answer_may_arrive_in_any_pieces(size: int, server: Server, call: Call) -> None:
    whole = "".join(map(str, said("Grüße, ", "世界")))
    raw = whole.encode().decode("latin-1").replace("\\u00fc", "Ã¼")  # also not escaped
    server.answers(*(raw[i : i + size] for i in range(0, len(raw), size)))
    assert printed(call("chat", "--url", server.url, "Hi")) == "Grüße, 世界\n"


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([event({"error": {"message": "the worker died", "code": 502}})], "the worker died"),
        (["event: error\n", event({"error": "no blocks left"})], "no blocks left"),
        ([], "the answer was cut off"),
        (["data: nonsense\n\n"], "the answer was cut off"),
    ],
)
def test_interrupted_answer_is_an_error(
    pieces: list[str | float], reason: str, server: Server, call: Call
) -> None:
    server.answers(*said("Half")[:1], *pieces)
    done = call("chat", "--url", server.url, "Hi")
    refused(done, reason, code=1)
    assert done.stdout == "Half\n"


def test_chat_finds_a_run_by_nothing_name_or_folder(
    server: Server, call: Call, tmp_path: Path
) -> None:
    attempt = new_run(tmp_path / "runs" / "it's mine")
    new_run(tmp_path / "runs" / "batch", Config())  # newer, and no serving run
    refused(call("chat", "Hi"), "has no endpoint yet: waiting", "hpc-dynamo status", code=1)
    report(attempt, phase="loading")
    refused(call("chat", "runs/it's mine", "Hi"), "has no endpoint yet: loading", code=1)
    announce(attempt, server.url)
    for words in (["Hi"], ["name=it's mine", "Hi"], ["runs/it's mine", "Hi"]):
        assert printed(call("chat", *words)) == "Hello you\n"
    keys = {body["key"] for body in server.asked()}
    assert keys == {f"Bearer {attempt.run.api_key()}"}
    end(attempt, "the walltime ended")
    refused(call("chat", "Hi"), "has ended: the walltime ended", code=1)


def test_chat_refuses_runs_without_an_endpoint(call: Call, tmp_path: Path) -> None:
    refused(call("chat", "Hi"), "runs holds no serving run")
    new_run(tmp_path / "runs" / "batch", Config())
    refused(call("chat", "runs/batch", "Hi"), "runs/batch is not a serving run")
    refused(call("chat", "runs/bath", "Hi"), "runs/bath is not a run", "known: batch")
    refused(call("chat", "name=bath", "Hi"), "runs/bath is not a run")


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        """Return a file with a key and a certificate for another host."""
        file = tmp_path / f"{name}.pem"
        argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        argv += ["-subj", f"/CN={name}", "-keyout", str(tmp_path / "k"), "-out", str(file)]
        subprocess.run(argv, check=True, capture_output=True, timeout=HANG_S)
        file.write_text(file.read_text() + (tmp_path / "k").read_text())
        return file

    return make


def test_tls_trusts_only_the_certificate_of_the_run(
    certificate: Callable[[str], Path], call: Call, tmp_path: Path
) -> None:
    mine, other = str(certificate("n7.cluster")), str(certificate("evil"))
    with scripted(tmp_path / "tls", mine, mine) as server:
        server.answers(*said("safe"))
        attempt = new_run(tmp_path / "runs" / "x")
        announce(attempt, server.url, cert=mine)
        assert printed(call("chat", "Hi")) == "safe\n"
        refused(call("chat", "--cert", other, "Hi"), "certificate verify failed", code=1)
        refused(call("chat", "--url", server.url, "Hi"), "certificate verify failed", code=1)
        refused(call("chat", "--cert", "none", "Hi"), "none is not a certificate")


def type_in(chat: Process, line: str) -> None:
    """Type a line after the prompt: readline may drop characters typed before it."""
    chat.expect_exact("> ")
    chat.sendline(line)


def test_conversation_keeps_history_and_system_prompt(server: Server, tmp_path: Path) -> None:
    with on_a_terminal(["chat", "--url", server.url], tmp_path) as chat:
        chat.expect_exact("scripted at http")
        type_in(chat, "My name is Ann")
        chat.expect_exact("Hello you")
        chat.expect(r"TTFT \d+ ms, 9 tokens")
        type_in(chat, "/system Be brief.")
        chat.expect_exact("system: Be brief.")
        type_in(chat, "\x1b[A\x1b[A!")  # readline: the line before the last, and a letter more
        chat.expect_exact("Hello you")
        chat.expect("TTFT")
        type_in(chat, "/clear")
        chat.expect_exact("new conversation")
        type_in(chat, "/what")
        chat.expect_exact("/clear starts")
        type_in(chat, "Again")
        chat.expect("TTFT")
        type_in(chat, "/exit")
        assert ends(chat) == 0
    user, assistant = ({"role": "user"}, {"role": "assistant"})
    system = {"role": "system", "content": "Be brief."}
    assert [body["messages"] for body in server.asked()] == [
        [user | {"content": "My name is Ann"}],
        [
            system,
            user | {"content": "My name is Ann"},
            assistant | {"content": "Hello you"},
            user | {"content": "My name is Ann!"},
        ],
        [system, user | {"content": "Again"}],
    ]


def test_ctrl_c_stops_only_the_answer(server: Server, tmp_path: Path) -> None:
    still_here: list[str | float] = [0.2, ": still here\n\n"]
    server.answers(*said("One", " two")[:2], *still_here * 100)
    with on_a_terminal(["chat", "--url", server.url], tmp_path) as chat:
        type_in(chat, "Count")
        chat.expect_exact("One two")
        chat.sendintr()
        chat.expect_exact("stopped")
        until("the server sees it", (server.folder / "gone").exists)
        server.answers(*said("Fine"))
        chat.expect_exact("> ")
        chat.send("half a line")
        chat.expect_exact("half a line")  # readline listens
        chat.sendintr()
        type_in(chat, "Go on")
        chat.expect_exact("Fine")
        chat.expect("TTFT")
        chat.expect_exact("> ")
        chat.sendeof()
        assert ends(chat) == 0
    assert [m["content"] for m in server.asked()[1]["messages"]] == ["Count", "One two", "Go on"]


def test_conversation_continues_after_an_error(server: Server, tmp_path: Path) -> None:
    server.answers(event({"error": {"message": "overloaded"}}))
    with on_a_terminal(["chat", "--url", server.url], tmp_path) as chat:
        type_in(chat, "First")
        chat.expect_exact("error: overloaded")
        server.answers(*said("Fine"))
        type_in(chat, "Second")
        chat.expect_exact("Fine")
        chat.expect("TTFT")
        chat.expect_exact("> ")
        chat.sendeof()
        assert ends(chat) == 0
    assert [m["content"] for m in server.asked()[1]["messages"]] == ["Second"]


def test_control_characters_of_answers_are_escaped_on_a_terminal(
    server: Server, tmp_path: Path
) -> None:
    evil = "\x1b]0;owned\x07A\x9b2JB :smile: [bold]"
    server.answers(*said(evil))
    with on_a_terminal(["chat", "--url", server.url, "Hi"], tmp_path) as chat:
        chat.expect_exact(r"\x1b]0;owned\x07A\x9b2JB :smile: [bold]")
        assert ends(chat) == 0
    assert hpc_dynamo("chat", "--url", server.url, "Hi", cwd=tmp_path).stdout == f"{evil}\n"


def test_reasoning_is_shown_only_on_a_terminal(server: Server, tmp_path: Path) -> None:
    think = event({"choices": [{"delta": {"reasoning_content": "hmm", "content": None}}]})
    server.answers(think, *said("Four"))
    with on_a_terminal(["chat", "--url", server.url, "2+2"], tmp_path) as chat:
        chat.expect_exact("hmm")
        chat.expect_exact("Four")
        assert ends(chat) == 0
    assert hpc_dynamo("chat", "--url", server.url, "2+2", cwd=tmp_path).stdout == "Four\n"
