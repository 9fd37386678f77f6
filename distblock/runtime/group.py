"""The process group of a stage's replicas: what their processes add up, and how they find each other.

A ring would add each part of the gradients in an order of its own. Here every process gathers its slice of all
replicas' gradients, adds it in the order of their numbers, and hands the sum around: as many bytes as a ring takes,
and the same bits as a plain loop.

Source: reduce-scatter and all-gather as in Thakur et al. 2005, "Optimization of Collective Communication Operations
in MPICH".
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from distblock.errors import InputError
from distblock.learning.replicas import PeersGoneError, add_in_order
from distblock.runtime.interfaces import interface_to

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others: the driver knows far sooner who has died or frozen, and ends the rest."""


class Group:
    """This process's place among the replicas of its stages; `distblock.learning.replicas.Replicas`.

    Args:
        replica: this process's number.
        count: replicas.
        node: address of this host, as Ray has it.
        device: where the stages live.
    """

    def __init__(self, *, replica: int, count: int, node: str, device: torch.device) -> None:
        self.count = count
        self.own = range(replica, replica + 1)
        self._node = node
        self._device = device
        self._store: TCPStore | None = None
        self._joined: Future[None] = Future()

    def open(self) -> tuple[str, int]:
        """Let the others come: the address to join at."""
        # Left to itself the store would listen on every address of the host.
        listening = socket.create_server((self._node, 0))
        port = listening.getsockname()[1]
        self._store = TCPStore(
            *(self._node, port, self.count),
            is_master=True,
            wait_for_workers=False,
            timeout=PATIENCE,
            master_listen_fd=listening.detach(),
        )
        return self._node, port

    def join(self, host: str, port: int) -> None:
        """Meet the others."""
        try:
            store = self._store or TCPStore(host, port, self.count, is_master=False, timeout=PATIENCE)
            backend = "nccl" if self._device.type == "cuda" else "gloo"
            # NCCL takes a bare name for a prefix. Whoever has set another card keeps it.
            name = interface_to(self._node).name
            if name is None:
                raise InputError(
                    f"replicas: expected a network interface of this host on the way to {self._node}, Ray's address of"
                    " it, got none; start the node with ray start --node-ip-address"
                )
            os.environ.setdefault(f"{backend.upper()}_SOCKET_IFNAME", f"={name}" if backend == "nccl" else name)
            dist.init_process_group(backend, store=store, rank=self.own.start, world_size=self.count, timeout=PATIENCE)
        except Exception as error:
            self._joined.set_exception(error)
            raise
        self._joined.set_result(None)

    def leave(self) -> None:
        """Whoever waits for this one waits no longer."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def meet(self) -> None:
        """Wait for the others; as for `Replicas`."""
        with _naming_peers():
            self._joined.result()

    def add(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum over all replicas, in the order of their numbers; as for `Replicas`."""
        with _naming_peers():
            return self._add(parts[0])

    def _add(self, part: Tensor) -> Tensor:
        length = len(part)
        slice_length = -(-length // self.count)
        padded = torch.cat([part, part.new_zeros(slice_length * self.count - length)])
        gathered = torch.empty_like(padded)
        dist.all_to_all_single(gathered, padded)
        whole = torch.empty_like(padded)
        dist.all_gather(list(whole.chunk(self.count)), add_in_order(gathered.chunk(self.count)))
        return whole[:length]


@contextmanager
def _naming_peers() -> Iterator[None]:
    """A collective that fails names the others; a device that fails, or is full, is this process's own."""
    try:
        yield
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise PeersGoneError(f"another replica does not answer: {error}") from error
