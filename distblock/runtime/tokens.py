"""A cluster's token: where it is read from, and a first question to the cluster that shows whether it is the right one.

Ray asks for a token by default. With a wrong one it would try for 20 seconds, writing a line a second of its own; with
none it raises from deep inside. So the question comes first, over the connection that Ray is about to use, and the
answer is one line. The token itself goes into request headers alone: never into a message, a log or a file.
"""

from __future__ import annotations

import os
from pathlib import Path

import grpc

from distblock.errors import InputError

WHERE = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
"""Where Ray and we look for a token, in this order."""

ANSWER_S = 10.0
"""Seconds in which a cluster has to answer the first question."""

_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def cluster_token() -> str | None:
    """The token this process has been given, if any.

    Raises:
        InputError: RAY_AUTH_TOKEN_PATH names a file that cannot be read, or an empty one.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read(Path(path))
    usual = Path("~/.ray/auth_token").expanduser()
    return (usual.read_text().strip() or None) if usual.is_file() else None


def token_header() -> dict[str, str]:
    """The header that shows the token, for HTTP and gRPC alike; empty where there is none."""
    token = cluster_token()
    return {} if token is None else {"authorization": f"Bearer {token}"}


def use_token(address: str) -> None:
    """Have Ray show the token to a cluster that asks for one: left to itself, a process that joins one does not.

    Ray reads this setting when it is imported, so this comes before.
    """
    place = _place(address)
    if place and "RAY_AUTH_MODE" not in os.environ and cluster_token() and _refuses(place, {}):
        os.environ["RAY_AUTH_MODE"] = "token"


def check_token(address: str) -> None:
    """Ask the cluster for its id, as Ray would next.

    Args:
        address: host and port of the cluster's control store, or ``auto``. A cluster that does not know the question,
            or does not answer, is left to Ray.

    Raises:
        InputError: it wants another token than the one that Ray would show, or none.
    """
    place = _place(address)
    if place is None:
        return
    shows = os.environ.get("RAY_AUTH_MODE") == "token"
    asks = _refuses(place, {})
    header = token_header() if shows else {}
    if asks and (not header or _refuses(place, header)):
        raise InputError(f"address: {refusal(address, header, shows=shows)}")
    if shows and asks is False:
        raise InputError(
            f"address: the cluster at {address} asks for no token, but RAY_AUTH_MODE is token, and workers could not"
            " reach this process; unset RAY_AUTH_MODE"
        )


def _place(address: str) -> str | None:
    """Host and port; for ``auto``, what Ray would take: from the environment, or of the node that runs here."""
    place = address
    if address == "auto":
        started = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        place = os.environ.get("RAY_ADDRESS") or (started.read_text().strip() if started.is_file() else address)
    return place if place.rpartition(":")[2].isdigit() else None


def _refuses(place: str, header: dict[str, str]) -> bool | None:
    """Whether a cluster refuses that token, or none; None: it gave another answer, or none at all."""
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(_QUESTION)
        try:
            ask(b"", timeout=ANSWER_S, metadata=tuple(header.items()))
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            return True if code == grpc.StatusCode.UNAUTHENTICATED else None
        return False


def refusal(address: str, header: dict[str, str], *, shows: bool = True) -> str:
    """What to say where a cluster does not let this process in.

    Args:
        address: the cluster's.
        header: what was shown to it.
        shows: whether this process may show a token at all.
    """
    if not shows:
        return f"expected the token of the cluster at {address}, but RAY_AUTH_MODE is not token; set it, and {WHERE}"
    if not header:
        return f"expected a token for the cluster at {address}, got none; give it in {WHERE}"
    return f"expected the token of the cluster at {address}, got another one; give the cluster's in {WHERE}"


def _read(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise InputError(f"RAY_AUTH_TOKEN_PATH: expected a file with a token, got {path}: {reason}") from None
    if not token:
        raise InputError(f"RAY_AUTH_TOKEN_PATH: expected a file with a token, got {path}, which is empty")
    return token
