"""One real server as a child process: started on loopback, waited for with a time limit, ended by its own process id.

A server never outlives its test run: where `setpriv` is there (Linux), the kernel ends it with the process that started
it, even when that one is killed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"


class ServerMissingError(RuntimeError):
    """The server's program is not installed; the text says how to install it."""


class ServerFailedError(RuntimeError):
    """The server ended or did not answer in time; the text ends with the tail of its log."""


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on now. Another process may take one first: start again where one did."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind((LOOPBACK, 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def unprivileged_user() -> str | None:
    """A user to run a server as that refuses to run as root; None where this process is not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def as_user(command: Sequence[str], user: str | None) -> list[str]:
    """The command, run as `user` and ended with its parent."""
    if shutil.which("setpriv") is None:
        if user is not None:
            raise ServerMissingError(
                "to start PostgreSQL as root, setpriv is required (Debian: apt-get install util-linux)"
            )
        return list(command)
    identity = []
    if user is not None:
        entry = pwd.getpwnam(user)
        identity = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    return ["setpriv", "--pdeathsig=KILL", *identity, *command]


class Server:
    """A running child process with its log; `stop` is safe to call twice.

    environment: all the variables that the server sees, none is inherited.
    stop_signal: what asks it to end; after `stop_timeout_s` it is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self._stop_signal = stop_signal
        self._stop_timeout_s = stop_timeout_s
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                as_user(command, user),
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], object], *, timeout_s: float) -> None:
        """Return once `ready()` is true; raises ServerFailedError when the process ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        last: Exception | None = None
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerFailedError(f"{self.name} ended with code {self.process.returncode}\n{self.log_tail()}")
            try:
                if ready():
                    return
            except Exception as error:  # whatever a server that is not up yet provokes
                last = error
            time.sleep(0.05)
        raise ServerFailedError(f"{self.name} did not answer within {timeout_s:g} s: {last}\n{self.log_tail()}")

    def pause(self) -> None:
        """Stop answering, with every connection left open: what a hung server looks like."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)  # its threads stop a moment after the signal was sent

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)  # a paused process never sees the next signal
            self.process.send_signal(self._stop_signal)
            try:
                self.process.wait(self._stop_timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(self._stop_timeout_s)

    def log_tail(self, lines: int = 30) -> str:
        tail = self.log_path.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"--- end of {self.log_path} ---", *tail])
