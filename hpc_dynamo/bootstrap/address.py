"""Addresses of this node, for other nodes of the job and for clients."""

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
    """Return the IPv4 address of `interface`, or else the source address of packets to `peers`.

    A job of one node uses loopback. Raises ConfigError for an unknown interface.
    """
    if interface:
        return _address_of(interface)
    others = [peer for peer in peers if peer != socket.gethostname()]
    return _source_towards(others[0]) if others else LOOPBACK


def address_for_clients(address: str) -> str:
    """Return an address that other nodes can reach, for an endpoint of a Slurm job.

    It differs from `address` only if that is loopback. Without Slurm loopback is returned.
    """
    login = os.environ.get(LOGIN_HOST) or os.environ.get("SLURM_SUBMIT_HOST", "")
    if address != LOOPBACK or login in ("", socket.gethostname()):
        return address
    try:
        return _source_towards(login)
    except OSError:  # this node cannot resolve the name
        return _source_towards(socket.gethostname())


def address_for_extra_jobs(address: str) -> str:
    """Return the head's address for agents of extra jobs on other nodes.

    Raises ConfigError if this node of a Slurm job has only a loopback address.
    """
    found = address_for_clients(address)
    if found.startswith("127.") and "SLURM_JOB_ID" in os.environ:
        what = "extra jobs need an address of this node that other nodes can reach"
        raise ConfigError(what, hint="cluster.interface=ib0, or the name of another interface")
    return found


def interface_with_address(address: str) -> str:
    """Return the network interface that has this IPv4 address; empty if none has."""
    for _, name in socket.if_nameindex():
        with suppress(ConfigError):  # it has no address
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
    """Return the source address of packets to `host`.

    Connecting a datagram socket sends nothing, but makes the kernel choose a route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((host, 9))
        return str(s.getsockname()[0])
