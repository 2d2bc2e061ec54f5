"""Which of a node's addresses the rest of the job should use."""

import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from hpc_dynamo.errors import ConfigError, unknown_name
from hpc_dynamo.process.child import LOGIN_HOST

SIOCGIFADDR = 0x8915  # linux/sockios.h: IPv4 address of an interface
LOOPBACK = "127.0.0.1"


def job_address(interface: str | None, peers: Sequence[str]) -> str:
    """The IPv4 address on `interface`, or the one that packets to another node leave from.

    A job of one node stays on loopback. Raises ConfigError for an unknown interface.
    """
    if interface:
        return _address_of(interface)
    others = [peer for peer in peers if peer != socket.gethostname()]
    return _source_towards(others[0]) if others else LOOPBACK


def address_for_clients(address: str) -> str:
    """Where clients outside of a node find it: a job of one node is on loopback, from which only
    what runs there can reach it. Without Slurm that is what is wanted."""
    login = os.environ.get(LOGIN_HOST) or os.environ.get("SLURM_SUBMIT_HOST", "")
    if address != LOOPBACK or login in ("", socket.gethostname()):
        return address
    try:
        return _source_towards(login)
    except OSError:  # the name means nothing on this node
        return _source_towards(socket.gethostname())


def address_for_extra_jobs(address: str) -> str:
    """The head's own, for agents of further jobs on other nodes. Raises ConfigError where a job of
    Slurm knows none but loopback's."""
    found = address_for_clients(address)
    if found.startswith("127.") and "SLURM_JOB_ID" in os.environ:
        what = "further jobs need an address of this node that other nodes can reach"
        raise ConfigError(what, hint="cluster.interface=ib0, or as the interface is called")
    return found


def interface_with_address(address: str) -> str:
    """The name of the network interface that has this IPv4 address; empty where none has."""
    for _, name in socket.if_nameindex():
        with suppress(ConfigError):  # it has none
            if _address_of(name) == address:
                return name
    return ""


def _address_of(interface: str) -> str:
    known = [name for _, name in socket.if_nameindex()]
    if interface not in known:
        raise unknown_name("cluster.interface", interface, known)
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            answer = fcntl.ioctl(s.fileno(), SIOCGIFADDR, request)
        except OSError as e:
            hint = f"one of {', '.join(known)} that has an IPv4 address"
            raise ConfigError(f"cluster.interface={interface} has no address", hint=hint) from e
    return socket.inet_ntoa(answer[20:24])


def _source_towards(host: str) -> str:
    """Connecting a datagram socket sends nothing, but makes the kernel choose the route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((host, 9))
        return str(s.getsockname()[0])
