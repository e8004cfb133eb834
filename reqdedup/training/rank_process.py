"""The program of one rank that `run_ranks` starts; not meant to be called by hand.

Reads its settings and the target from stdin, joins the process group, runs the target, and sends events, the result or
the error through an inherited file descriptor.
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import sys
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from reqdedup.training.launch import RankMessage, RankSettings


def main(file_descriptor: int) -> None:
    connection = Connection(file_descriptor, readable=False)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # as the command says them
    try:
        settings: RankSettings = pickle.load(sys.stdin.buffer)
        payload = (
            sys.stdin.buffer.read()
        )  # all of it, before this rank waits for others that the launcher has yet to feed
        result = _run(settings, payload, connection)
        send(connection, RankMessage(kind="result", value=result))
    except BaseException as error:
        message = RankMessage(kind="error", value=_text(error), is_symptom=_is_symptom(error))
        try:
            send(connection, message)
        except OSError:
            raise error from None
        sys.stdout.flush()
        os._exit(1)  # not sys.exit: leaving a broken process group can wait for its peers
    sys.stdout.flush()


def send(connection: Connection, message: RankMessage) -> None:
    """Plain pickle: the connection's own would share tensors through sockets that die with this process."""
    connection.send_bytes(pickle.dumps(message))


def _run(settings: RankSettings, payload: bytes, connection: Connection) -> Any:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:
        os.putenv("GLOO_SOCKET_IFNAME", loopback[0])
    store = dist.FileStore(settings.store_path, settings.world_size)
    dist.init_process_group(
        settings.backend,
        store=store,
        rank=settings.rank,
        world_size=settings.world_size,
        timeout=timedelta(seconds=settings.collective_timeout_s),
    )
    target, args = pickle.loads(payload)
    gc.freeze()  # what the libraries made as they were loaded, uncollected so far: no collection is to look at it
    gc.enable()
    result = target(lambda event: send(connection, RankMessage(kind="event", value=event)), *args)
    dist.barrier()  # a rank that leaves early would look lost to one that still works
    dist.destroy_process_group()
    return result


def _text(error: BaseException) -> str:
    """One line for what a user can act on, the whole traceback otherwise."""
    if isinstance(error, (ValueError, FloatingPointError, OSError)):
        return f"{type(error).__name__}: {error}"
    return "".join(traceback.format_exception(error)).rstrip()


def _is_symptom(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("connection closed by peer", "connection reset", "timed out", "timeout", "gloo")
    )
