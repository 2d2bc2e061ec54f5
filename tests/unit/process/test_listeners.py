"""User of a listening port, from the tables of the kernel."""

import os
import socket
from pathlib import Path

import pytest

from hpc_dynamo.process import listeners
from hpc_dynamo.process.listeners import port_user

OTHER = 4711
OWN = os.geteuid()
V4, ANY4, OTHER4 = "0100007F", "00000000", "0500000A"
ANY6, MAPPED = "0" * 32, "0000000000000000FFFF00000100007F"


def use_tables(monkeypatch: pytest.MonkeyPatch, folder: Path, *rows: tuple[str, str, int]) -> None:
    """Replace the tables of the kernel by sockets on port 8000: address, state, user."""
    lines = [
        f" 0: {address}:1F40 00000000:0000 {state} 0:0 00:0 0 {uid} 0 77 1"
        for address, state, uid in rows
    ]
    files = folder / "tcp", folder / "tcp6"
    for file, length in zip(files, (8, 32), strict=True):
        own = [line for line in lines if len(line.split()[1]) == length + 5]
        file.write_text("\n".join(["header", *own]) + "\n")
    monkeypatch.setattr(listeners, "TABLES", files)


@pytest.mark.parametrize("address", [V4, ANY4, ANY6, MAPPED])
def test_socket_of_another_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    use_tables(monkeypatch, tmp_path, (address, "0A", OTHER))
    assert port_user("127.0.0.1", 8000) == (False, str(OTHER))


@pytest.mark.parametrize("address", [V4, ANY4, ANY6, MAPPED])
def test_own_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str) -> None:
    use_tables(monkeypatch, tmp_path, (address, "0A", OWN), (V4, "01", OTHER))
    assert port_user("127.0.0.1", 8000) == (True, "")
    assert port_user("127.0.0.1", 8001) == (False, "")


def test_socket_of_another_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_tables(monkeypatch, tmp_path, (OTHER4, "0A", OTHER), (V4, "0A", OWN))
    assert port_user("127.0.0.1", 8000) == (True, "")
    assert port_user("10.0.0.5", 8000).other_user
    assert port_user("name-of-a-node", 8000).other_user  # any address


def test_connections_are_no_listeners(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_tables(monkeypatch, tmp_path, (V4, "01", OWN), (V4, "06", OTHER))
    assert port_user("127.0.0.1", 8000) == (False, "")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_tables_of_this_machine(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        server = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("no IPv6")
    with server:
        port = server.getsockname()[1]
        assert port_user(address, port) == (True, "")
    assert port_user(address, port) == (False, "")
