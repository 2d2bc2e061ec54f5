"""Port of an endpoint, shared only by the frontend processes of one run.

With SO_REUSEPORT the kernel spreads connections over all sockets of a user on a port, including
those of other programs. So the port is first opened without it, which fails if it is in use.

- With one frontend process SO_REUSEPORT is never set.
- With several it is set, since the kernel then spreads connections evenly.
- With job handover it is set too: the next job of the run may be on the same node.

A program that sets SO_REUSEPORT itself, such as vLLM, can then still join the port.

Source: socket(7), ip(7); Linux, net/ipv4/inet_connection_sock.c.
"""

import os
import re
import shlex
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from hpc_dynamo.errors import EngineError
from hpc_dynamo.process.listeners import listeners
from hpc_dynamo.run import Attempt
from hpc_dynamo.run.privacy import user_name

BACKLOG = 4096
RUN = re.compile(r"(/\S.*)/attempts/\d+")


class KeptPort:
    """Socket for the port of an endpoint, in the process that ends the endpoint.

    That is the task of node 0, which starts one head after another, or a head without such a task.
    An EndpointSocket binds the socket. If a head dies, the port stays reserved for the next one.
    """

    def __init__(self, host: str) -> None:
        self.socket = _new_socket(host)

    def close(self) -> None:
        """Refuse new clients, in all processes that have the socket, and release the port. It is
        free once all of them have closed their sockets."""
        with suppress(OSError):  # it does not listen, or is closed
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _new_socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)


class EndpointSocket:
    """The port of an endpoint as one head uses it. Its KeptPort reserves it longer."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        shared: bool,
        attempt: Attempt,
        kept: socket.socket,
    ) -> None:
        """`shared`: more than one socket will listen. `kept` is the socket of a KeptPort, which an
        earlier head may have bound.

        Raises EngineError if a server of another run uses the port. An earlier job of the same
        run may use it.
        """
        self._host, self._shared, self._kept = host, shared, kept.dup()
        if bound_port := int(self._kept.getsockname()[1]):
            self._reserved, self.port = self._kept, bound_port
            if not shared:
                self._kept.listen(BACKLOG)
            return
        try:
            same_run = shared and port and _earlier_job_listens(attempt, port)
            self._reserved = self._shareable(port) if same_run else self._reserve(port)
        except OSError as e:
            self._kept.close()
            raise _port_error(host, port, e) from e
        self.port = int(self._reserved.getsockname()[1])

    def _reserve(self, port: int) -> socket.socket:
        kept = None if self._shared else self._kept
        first = _bound(self._host, port, shared=False, made=kept)
        try:
            first.listen(BACKLOG)  # fails if another server listens
        except OSError:
            first.close()
            raise
        if not self._shared:
            return first
        # It stays open until the new socket is bound, so that no other server takes the port.
        with first:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            return self._shareable(int(first.getsockname()[1]))

    def _shareable(self, port: int) -> socket.socket:
        """Return a socket that never listens and excludes servers without SO_REUSEPORT."""
        reserved = _bound(self._host, port, shared=True, made=self._kept)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return reserved

    def open(self) -> socket.socket:
        """Return a socket for a frontend process to listen on; the caller closes it."""
        return _bound(self._host, self.port, shared=True) if self._shared else self._reserved.dup()

    def close(self) -> None:
        """Close this head's socket. The endpoint continues: the next head may listen already."""
        self._reserved.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _bound(
    host: str, port: int, *, shared: bool, made: socket.socket | None = None
) -> socket.socket:
    made = made or _new_socket(host)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for connections that linger
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _earlier_job_listens(attempt: Attempt, port: int) -> bool:
    """Return True if a job of this run that hands over to this job has the port of this node."""
    for earlier in attempt.run.attempts():
        endpoint = earlier.endpoint() if earlier.number < attempt.number else None
        if endpoint and endpoint.port == port and endpoint.host == socket.gethostname():
            return earlier.outcome() is None
    return False


def _port_error(host: str, port: int, error: OSError) -> EngineError:
    what = f"cannot listen on {host}:{port} of {socket.gethostname()}: {error.strerror}"
    hint = "serve.port=0 for any free port, serve.host for another address of the head node"
    if found := port_owner(port):
        what += f" by {found}"
    if run := RUN.search(found):
        stop = shlex.join(("hpc-dynamo", "stop", run[1]))
        hint = f"serve.port=0 for any free port, or end that run: {stop}"
    return EngineError(what, hint=hint)


def port_owner(port: int) -> str:
    """Describe the process that listens on a port of this node, if visible: processes of other
    users are hidden. Empty if no process listens."""
    for listener in listeners(port):
        for pid in _with_socket(listener.inode):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            run = next((m for word in words if (m := RUN.match(word))), None)
            return f"process {pid} of {run[0]}" if run else f"process {pid}: {_short(words)}"
        return f"a process of user {user_name(listener.uid)}"
    return ""


def _short(words: list[str]) -> str:
    return " ".join(words).strip()[:100]


def _with_socket(inode: str) -> Iterator[int]:
    """Yield processes that have the socket open, if they are readable."""
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(fd) == f"socket:[{inode}]":
                yield int(fd.parts[2])
