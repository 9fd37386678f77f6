"""What both ends of a connection from worker to worker know of it.

Both know a token, which an offer holds, and offers travel by Ray alone. It never crosses: either end proves by a digest
of the other's random bytes that it knows it. What follows is not encrypted, like what Ray sends unless told to:
questions, each the number of what is asked for, and answers: how many buffers there are, the length of each, a digest,
and then they. The first is a pickle, and of it and the lengths the digest is, so that nobody on the way can have the
receiver unpickle what the sender has not sent.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct

TOKEN_BYTES = 32

QUESTION = struct.Struct("!Q")
"""The number of what is asked for."""

COUNT = struct.Struct("!Q")
"""How many buffers follow; 0: it is not there."""

_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds, seconds, and how often: what lies between two hosts forgets a connection on which nothing passes, and the
end of a host that has vanished would be held for ever."""

_DIGEST = "sha256"
DIGEST_BYTES = 32


def set_up(line: socket.socket) -> None:
    """What a connection has at either end."""
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def greet(line: socket.socket, token: bytes) -> None:
    """As the one who has connected.

    Raises:
        PermissionError: the other end does not know the token.
        ConnectionError: the connection ended.
    """
    drawn = secrets.token_bytes(TOKEN_BYTES)
    line.sendall(drawn)
    proof = read_exactly(line, DIGEST_BYTES)
    check(proof, token, b"sender", drawn)
    line.sendall(digest(token, b"receiver", read_exactly(line, TOKEN_BYTES)))


def welcome(line: socket.socket, token: bytes) -> None:
    """As the one who listens; as for `greet`."""
    line.sendall(digest(token, b"sender", read_exactly(line, TOKEN_BYTES)))
    drawn = secrets.token_bytes(TOKEN_BYTES)
    line.sendall(drawn)
    check(read_exactly(line, DIGEST_BYTES), token, b"receiver", drawn)


def read_exactly(line: socket.socket, num_bytes: int) -> bytes:
    """So many bytes.

    Raises:
        ConnectionError: the connection ended before.
    """
    found = bytearray(num_bytes)
    read_into(line, memoryview(found))
    return bytes(found)


def read_into(line: socket.socket, into: memoryview) -> None:
    """Fill a buffer; as for `read_exactly`."""
    while into:
        came = line.recv_into(into)
        if not came:
            raise ConnectionError("the other end has closed the connection")
        into = into[came:]


def digest(token: bytes, what: bytes, content: bytes) -> bytes:
    """Which only who knows the token can make."""
    return hmac.digest(token, what + content, _DIGEST)


def check(proof: bytes, token: bytes, what: bytes, content: bytes) -> None:
    """That it is the digest.

    Raises:
        PermissionError: it is another one.
    """
    if not hmac.compare_digest(proof, digest(token, what, content)):
        raise PermissionError("the other end does not know the token")
