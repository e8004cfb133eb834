"""Where a rank computes, in which precision, and how its batches get there.

On a GPU the loader's thread pins a batch and copies it on a stream of its own, so that the copy of the next batch runs
beside the step on this one. Counts and objects travel over gloo, gradients and statistics over NCCL.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from reqdedup.batch import RequestBatch

DeviceKind = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]


def backend_of(device: DeviceKind) -> str:
    """The process group's backend for ranks on this kind of device."""
    return "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"


def device_of_rank(device: DeviceKind, rank: int, world_size: int) -> torch.device:
    """This rank's device: the CPU, or a GPU of its own on this machine.

    Raises ValueError if torch sees no GPU, or if the ranks of this machine outnumber its GPUs (NCCL takes one each).
    """
    if device == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    local_rank = dist.get_node_local_rank(fallback_rank=rank) if world_size > 1 else 0
    if local_rank >= found:
        raise ValueError(
            f"training on {device}: a GPU for each rank of this machine required, found {found} for rank {local_rank} "
            f"of {world_size}; set world_size to the number of GPUs, or device='cpu'"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of a forward pass: weights stay float32, matrix products run in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def in_float32(outputs: Any) -> Any:
    """A model's output or outputs in float32 at least: losses are computed so whatever the matrix products were in."""
    if isinstance(outputs, tuple):
        return tuple(in_float32(x) for x in outputs)
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


@dataclass(frozen=True)
class Sent:
    """A batch on its way; `copied` is None if it has arrived already."""

    batch: RequestBatch
    copied: torch.cuda.Event | None = None


class Transfer:
    """Copies batches to a device: `send` in the thread that makes them, `receive` in the one that computes.

    On a GPU `send` returns before the copy is done, and `receive` lets the current stream wait for
    it, not the processor.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: RequestBatch) -> Sent:
        if self._stream is None:
            return Sent(batch.to(self.device))
        with torch.cuda.stream(self._stream):
            moved = batch.pin_memory().to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return Sent(moved, copied)

    def receive(self, sent: Sent) -> RequestBatch:
        if sent.copied is None:
            return sent.batch
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(sent.copied)
        for tensor in sent.batch.tensors().values():
            tensor.record_stream(stream)  # the copying stream's memory, not to be given away while this one reads it
        return sent.batch


def peak_device_memory_bytes(device: torch.device) -> int:
    """Largest memory that torch has held on a GPU so far; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def memory_bytes() -> int:
    """Resident memory of this process now; its peak if the system does not say (only Linux does)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_memory_bytes()
    return pages * resource.getpagesize()


class FreedMemory:
    """Gives memory that was freed back to the system once the process has grown by MOST_KEPT_BYTES.

    Tensors of a step differ in size from those of the step before, and glibc's heap keeps what falls between them: the
    live bytes of a run stay the same while its resident memory grows, 0.4 MB a step were measured. Other systems' heaps
    are left alone.
    """

    MOST_KEPT_BYTES = 16 * 2**20

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._mark = memory_bytes()

    def give_back(self) -> None:
        """To be called after each step."""
        if self._trim is not None and memory_bytes() > self._mark + self.MOST_KEPT_BYTES:
            self._trim(0)
            self._mark = memory_bytes()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
