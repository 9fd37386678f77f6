"""What a worker offers, and who takes it, over real connections; the object store is a stand-in that says so."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distblock.codecs.cast import encode
from distblock.codecs.payload import Payload
from distblock.codecs.staging import Staging
from distblock.config import make_config
from distblock.errors import InputError
from distblock.messages import Line
from distblock.preparation import make_job, prepare
from distblock.runtime.transports import inbox
from distblock.runtime.transports import outbox as outbox_module
from distblock.runtime.transports.choice import check_encryption, offered_edges, open_outbox
from distblock.runtime.transports.inbox import Inbox
from distblock.runtime.transports.outbox import Offer, Outbox

HERE = "127.0.0.1"
STORED: Any = "from the store"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A reference; whoever gets it gets `STORED`."""

    class Ray:
        @staticmethod
        def wait(references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
            return references, []

        @staticmethod
        def get(reference: Any) -> str:
            return STORED

    monkeypatch.setattr(inbox, "ray", Ray)
    return object()


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    box = Outbox(HERE, least_bytes=0, most=30)
    yield box
    box.close()


def payload(features: Any, codec: str = "fp32") -> Payload:
    labels = torch.arange(4)
    return encode(features, labels, codec=codec, run="r", edge=1, number=0, staging=Staging(torch.device("cpu")))


def offer(box: Outbox, value: Any) -> Offer:
    found = box.keep(value)
    assert found is not None
    return found


@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_what_is_kept_arrives_as_it_was_and_read_only(outbox: Outbox, store: Any, codec: str):
    images = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
    sent = (payload(images, codec), payload({"a": torch.rand(4, 7), "empty": torch.rand(4, 0)}, codec))
    came, past_store = Inbox(silence_s=10.0).fetch(store, offer(outbox, sent))
    assert past_store
    for got, expected in zip(came, sent, strict=True):
        assert got.header == expected.header
        for array, own in zip((*got.arrays, got.labels), (*expected.arrays, expected.labels), strict=True):
            assert (array.dtype, array.shape) == (own.dtype, own.shape)
            assert array.tobytes() == own.tobytes()
            assert not array.flags.writeable


def test_a_thing_is_given_once_and_whoever_asks_again_goes_to_the_store(outbox: Outbox, store: Any):
    box, own = Inbox(silence_s=10.0), offer(outbox, np.arange(3))
    assert box.fetch(store, own)[1]
    assert box.fetch(store, own) == (STORED, False)
    # The line is still good.
    assert box.fetch(store, offer(outbox, np.arange(3)))[1]


def test_small_things_are_not_kept_and_old_ones_are_let_go_of(store: Any):
    outbox = Outbox(HERE, least_bytes=1000, most=2)
    assert outbox.keep(np.zeros(100, dtype=np.uint8)) is None
    offers = [offer(outbox, np.full(10_000, number, dtype=np.uint8)) for number in range(3)]
    box = Inbox(silence_s=10.0)
    assert [box.fetch(store, each)[1] for each in offers] == [False, True, True]
    outbox.close()


def test_arrays_are_aligned_as_torchs_own_are(outbox: Outbox, store: Any):
    box = Inbox(silence_s=10.0)
    for size in (1, 100, 5_000, 100_000, 3_000_001):
        came, past_store = box.fetch(store, offer(outbox, np.ones(size, dtype=np.uint8)))
        assert past_store
        assert came.ctypes.data % 64 == 0


def test_what_memory_has_no_room_for_comes_from_the_store(outbox: Outbox, store: Any, monkeypatch: pytest.MonkeyPatch):
    buffer = inbox._buffer

    def full(line: socket.socket, length: int) -> memoryview:
        return buffer(line, length + 2**60)

    own = offer(outbox, np.arange(3))
    monkeypatch.setattr(inbox, "_buffer", full)
    assert Inbox(silence_s=10.0).fetch(store, own) == (STORED, False)


def test_many_threads_take_each_their_own(outbox: Outbox, store: Any):
    box = Inbox(silence_s=10.0)
    offers = [offer(outbox, np.full(50_000, number)) for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        came = list(threads.map(lambda each: box.fetch(store, each), offers))
    assert [(int(array[0]), int(array.sum()) // 50_000, past) for array, past in came] == [
        (number, number, True) for number in range(24)
    ]


def test_whoever_does_not_know_the_token_gets_nothing(outbox: Outbox, store: Any):
    own = offer(outbox, np.arange(3))
    stranger = Inbox(silence_s=10.0)
    assert stranger.fetch(store, replace(own, token=bytes(32))) == (STORED, False)
    with socket.create_connection((HERE, own.port)) as line:
        came = b""
        # It closes the connection as soon as it has seen that the proof is none.
        with suppress(OSError):
            line.sendall(bytes(200))
            while more := line.recv(1000):
                came += more
    # A proof that it knows the token, and what the other one has to prove it with: no length, no bytes.
    assert len(came) <= 64
    # It was there all along.
    assert Inbox(silence_s=10.0).fetch(store, own)[1]


def test_nothing_is_unpickled_from_who_does_not_know_the_token(store: Any):
    """Another process may have got the port of one that has died."""
    seen: list[bytes] = []

    def impostor(server: socket.socket) -> None:
        line, _ = server.accept()
        with line:
            seen.append(line.recv(32))
            line.sendall(bytes(32))
            seen.append(line.recv(1000))

    with socket.create_server((HERE, 0)) as server:
        thread = threading.Thread(target=impostor, args=(server,))
        thread.start()
        own = Offer(address=HERE, port=server.getsockname()[1], token=bytes(range(32)), number=1)
        assert Inbox(silence_s=10.0).fetch(store, own) == (STORED, False)
        thread.join()
    assert len(seen[0]) == 32
    assert seen[1] == b""
    assert bytes(range(32)) not in seen


def test_what_was_changed_on_its_way_is_not_unpickled(outbox: Outbox, store: Any, monkeypatch: pytest.MonkeyPatch):
    """Its digest is that of another one."""
    own, other = (offer(outbox, {"uint8": np.arange(3)}) for _ in range(2))
    assert Inbox(silence_s=10.0).fetch(store, own)[1]
    sound = outbox_module.digest
    monkeypatch.setattr(outbox_module, "digest", lambda token, what, content: sound(token, what, content[:-1]))
    assert Inbox(silence_s=10.0).fetch(store, other) == (STORED, False)


KEEPER = """
import sys
import numpy as np
from distblock.runtime.transports.outbox import Outbox
box = Outbox("127.0.0.1", least_bytes=0, most=30)
for number in range(3):
    own = box.keep(np.full(1_000_000, number, dtype=np.uint8))
    print(own.port, own.token.hex(), own.number, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def keeper() -> Iterator[tuple[subprocess.Popen[str], list[Offer]]]:
    """Another process, and three offers of it."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", KEEPER], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        words = [process.stdout.readline().split() for _ in range(3)]
        yield (
            process,
            [
                Offer(address=HERE, port=int(port), token=bytes.fromhex(token), number=int(number))
                for port, token, number in words
            ],
        )
        process.kill()


def test_a_sender_that_has_died_is_given_up(keeper: Any, store: Any):
    process, offers = keeper
    box = Inbox(silence_s=10.0)
    assert box.fetch(store, offers[0])[1]
    process.kill()
    process.wait()
    assert box.fetch(store, offers[1]) == (STORED, False)
    assert box.fetch(store, offers[2]) == (STORED, False)


def test_after_a_while_it_is_asked_again(outbox: Outbox, store: Any):
    now_s = 0.0
    box = Inbox(silence_s=10.0, clock=lambda: now_s)
    own = offer(outbox, np.arange(3))
    # As if it had another token: a hiccup of the network would do the same.
    assert box.fetch(store, replace(own, token=bytes(32))) == (STORED, False)
    assert box.fetch(store, own) == (STORED, False)
    now_s = inbox.GIVEN_UP_S + 1
    assert box.fetch(store, own)[1]


def test_a_sender_that_is_frozen_is_waited_for_once(keeper: Any, store: Any):
    process, offers = keeper
    box = Inbox(silence_s=0.3)
    assert box.fetch(store, offers[0])[1]
    os.kill(process.pid, signal.SIGSTOP)
    # Its threads stop one after the other.
    os.waitpid(process.pid, os.WUNTRACED)
    assert box.fetch(store, offers[1]) == (STORED, False)
    os.kill(process.pid, signal.SIGCONT)
    # It is not asked again.
    assert box.fetch(store, offers[2]) == (STORED, False)


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_line_that_has_died_in_between_is_opened_anew(outbox: Outbox, store: Any, is_closed: bool):
    box = Inbox(silence_s=0.3)
    assert box.fetch(store, offer(outbox, np.arange(3)))[1]
    [lines] = box._lines.values()
    ours, other = socket.socketpair()
    ours.settimeout(0.3)
    if is_closed:
        other.shutdown(socket.SHUT_RDWR)
    # Else it is forgotten by what lies between: nothing comes back.
    lines.pop().close()
    lines.append(ours)
    assert box.fetch(store, offer(outbox, np.arange(3)))[1]
    other.close()


def test_auto_offers_what_crosses_a_line_that_could_be_measured(monkeypatch: pytest.MonkeyPatch):
    def edges(transport: str) -> frozenset[int]:
        config = {"channel": {"transport": transport}}
        return offered_edges(make_job(prepare(make_config(config)), run="r").hosts, lines)

    def line(edge: int, rate: float | None) -> Line:
        known = {"sender_interface": None, "receiver_interface": None}
        speeds: dict[str, Any] = {"sender_speed_bytes_per_s": None, "receiver_speed_bytes_per_s": None}
        return Line(edge=edge, sender="a", receiver="b", rate_bytes_per_s=rate, **known, **speeds)

    lines = [line(0, 1e6), line(2, None)]
    assert edges("auto") == {0}
    assert edges("object_store") == frozenset()
    assert edges("worker") == {0, 1, 2}
    monkeypatch.setenv("RAY_USE_TLS", "1")
    assert edges("auto") == frozenset()
    with pytest.raises(InputError, match="RAY_USE_TLS"):
        check_encryption(make_config({"channel": {"transport": "worker"}}))
    check_encryption(make_config({}))


def test_an_address_that_cannot_be_listened_at_leaves_all_to_the_store():
    assert open_outbox(make_config({}), "203.0.113.1", most=4) is None
