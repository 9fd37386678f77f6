"""Between a device and the host, without stopping the device.

A plain ``tensor.cpu()`` of a GPU tensor waits for everything the GPU has been given, later work too, and goes through
pageable memory. Here copies run on a stream of their own, through pinned buffers (torch's host allocator reuses
them), and wait only for the step that made the tensor. On a CPU both ways hand back the tensor itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class Staging:
    """Copies of one worker, from and to its device.

    Args:
        device: the worker's device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> None:
        """Called where the work that makes the tensors has been queued: later copies to the host wait for it alone."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def to_host(self, tensor: Tensor) -> Tensor:
        """The tensor in host memory; the copy is finished on return."""
        if self._stream is None or tensor.device.type == "cpu":
            return tensor
        with self.stream():
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
        self._stream.synchronize()
        return host

    def to_device(self, host: Tensor) -> Tensor:
        """The tensor on the device; the copy is finished on return."""
        if self._stream is None:
            return host
        pinned = torch.empty(host.shape, dtype=host.dtype, pin_memory=True).copy_(host)
        with self.stream():
            tensor = pinned.to(self.device, non_blocking=True)
        self._stream.synchronize()
        tensor.record_stream(torch.cuda.default_stream(self.device))
        return tensor

    def stream(self) -> AbstractContextManager[object]:
        """Context in which device work goes to the copy stream, beside the computing; nothing on a CPU."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
