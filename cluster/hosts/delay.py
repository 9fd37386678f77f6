"""A link that takes its time: frames pass between two TAP devices, each after a set delay.

The kernel's netem would do it, but many kernels come without. Run by itself (``delay.py PORT INNER SECONDS``) in the
bridge's network; the end INNER is then moved to the host's, and stays attached.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_FRAME_BYTES = 65_536
_AT_ONCE = 64
"""Frames read from one end before the other gets its turn."""


@dataclass
class Direction:
    """One way through the link: what was read, and when it is due at the other end."""

    source: int
    sink: int
    delay_s: float
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self) -> None:
        """Read what there is."""
        for _ in range(_AT_ONCE):
            try:
                frame = os.read(self.source, _FRAME_BYTES)
            except BlockingIOError:
                return
            self.waiting.append((time.monotonic() + self.delay_s, frame))

    def give(self) -> None:
        """Write what is due. An end that is down loses it, as a cable would."""
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            try:
                os.write(self.sink, self.waiting.popleft()[1])
            except OSError:
                continue


def attach(name: str) -> int:
    """Make a TAP device and return the file through which its frames pass."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


def forward(one: int, other: int, delay_s: float) -> None:
    """Forward both ways until a device goes."""
    ways = (Direction(one, other, delay_s), Direction(other, one, delay_s))
    while True:
        due = [way.waiting[0][0] for way in ways if way.waiting]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select([one, other], [], [], timeout_s)
        for way in ways:
            if way.source in readable:
                way.take()
            way.give()


if __name__ == "__main__":
    ends = attach(sys.argv[1]), attach(sys.argv[2])
    print("ready", flush=True)
    try:
        forward(*ends, float(sys.argv[3]))
    except OSError as error:
        sys.exit(f"a device went: {error}")
