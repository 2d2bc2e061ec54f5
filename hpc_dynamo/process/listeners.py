"""Users whose sockets listen on a port of this node.

A port that an engine will use is in its command line, which all users of the node can read. So
before a key goes to a port, its listening socket must be this user's.

Source: proc(5) for /proc/net/tcp; Linux, net/ipv4/tcp_ipv4.c (get_tcp4_sock).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from hpc_dynamo.run.privacy import user_name

TABLES = Path("/proc/net/tcp"), Path("/proc/net/tcp6")
LISTEN = "0A"  # state of a socket
ROOT = 0


class ListeningSocket(NamedTuple):
    """A listening socket."""

    address: IPv4Address | IPv6Address
    inode: str
    uid: int


class PortUser(NamedTuple):
    """State of a port. It is `listening` only if its sockets belong to this user or to root."""

    listening: bool
    other_user: str = ""  # name of another user whose socket listens


def port_user(address: str, port: int) -> PortUser:
    """Return whose socket gets a connection to the address of this node.

    Without /proc/net/tcp this is unknown, and the port counts as this user's.
    """
    if not os.access(TABLES[0], os.R_OK):
        return PortUser(listening=True)
    users = {each.uid for each in listeners(port) if _accepts(each.address, address)}
    if others := users - {ROOT, os.geteuid()}:
        return PortUser(listening=False, other_user=user_name(min(others)))
    return PortUser(listening=bool(users))


def listeners(port: int) -> Iterator[ListeningSocket]:
    """Yield the sockets that listen on the port."""
    suffix = f":{port:04X}"
    for table in TABLES:
        # A line at a time: other users may have a hundred thousand sockets.
        with suppress(OSError), table.open() as lines:
            for line in lines:
                if suffix not in line:
                    continue
                fields = line.split()
                if fields[3] == LISTEN and fields[1].endswith(suffix):
                    found = _address(fields[1].removesuffix(suffix))
                    yield ListeningSocket(found, fields[9], int(fields[7]))


def _address(text: str) -> IPv4Address | IPv6Address:
    """Read an address of the tables: 32-bit words in the byte order of this machine."""
    words = (int(text[i : i + 8], 16) for i in range(0, len(text), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return _plain(ip_address(packed))


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _accepts(own: IPv4Address | IPv6Address, target: str) -> bool:
    """Return True if a socket with the address `own` may get connections to `target`, which may be
    the name of a node."""
    try:
        wanted = _plain(ip_address(target))
    except ValueError:
        return True
    any_version = isinstance(own, IPv6Address)  # "::" also accepts IPv4
    return own == wanted or (own.is_unspecified and (any_version or wanted.version == own.version))
