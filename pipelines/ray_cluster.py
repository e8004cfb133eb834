"""A command beside a Ray cluster that nobody else can reach: `python -m pipelines.ray_cluster COMMAND ...`

    10.77.0.1  head, the command      10.77.0.2  node      ...        each in a network namespace of its own
         bridge ===== veth ================= eth0

Ray's processes listen on all interfaces; here these are loopback and the pairs between the namespaces, which end with
the command. It needs root and iproute2; without, it says so and ends with 3. The command finds the cluster in
REQDEDUP_ENGINE and RAY_ADDRESS, and its token in RAY_AUTH_TOKEN_PATH. Linux's own files are shared: every node sees the
tables.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reqdedup.display import counted
from reqdedup.environment import ENGINE_VARIABLE, variables

HEAD_PORT = 6379
CORES = 2
IMPOSSIBLE = 3
"""Exit status if this machine cannot have it."""

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def why_not() -> str:
    """Why there can be no network namespaces here; '' if there can."""
    if shutil.which("ip") is None:
        return "iproute2 (the program `ip`) is not installed"
    name = f"rd{secrets.token_hex(4)}"
    made = _ip("netns", "add", name, check=False)
    if made.returncode:
        return f"root is required to make a network namespace ({made.stderr.strip()})"
    try:
        up = _ip("-n", name, "link", "add", "br0", "type", "bridge", check=False)
        return f"no bridge can be made in a network namespace ({up.stderr.strip()})" if up.returncode else ""
    finally:
        _ip("netns", "del", name, check=False)


class Hosts:
    """Network namespaces joined by veth to a bridge in the first; all that runs in them ends with the block.

    Hosts are told by their numbers, from 0. Raises RuntimeError with what `ip` said if it cannot make them.
    """

    def __init__(self, count: int) -> None:
        stem = f"rd{secrets.token_hex(4)}"
        self.names = [f"{stem}-{number}" for number in range(count)]

    @staticmethod
    def address(number: int) -> str:
        return f"10.77.0.{number + 1}"

    def __enter__(self) -> Hosts:
        try:
            first, *others = self.names
            for name in self.names:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", first, "link", "add", "br0", "type", "bridge")
            _ip("-n", first, "addr", "add", f"{self.address(0)}/24", "dev", "br0")
            for number, name in enumerate(others, 1):
                pair = ("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
                _ip("-n", first, *pair)
                _ip("-n", first, "link", "set", f"port{number}", "master", "br0", "up")
                _ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", first, "link", "set", "br0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for number in range(len(self.names)):
            self.kill(number)
        for name in self.names:
            _ip("netns", "del", name, check=False)

    def start(self, number: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on a host."""
        return subprocess.Popen(["ip", "netns", "exec", self.names[number], *command], **options)

    def cut(self, number: int) -> None:
        """Cut the link of a host, which is not the first: both ends lose packets without a word."""
        _ip("-n", self.names[0], "link", "set", f"port{number}", "down")

    def mend(self, number: int) -> None:
        """Join the link again."""
        _ip("-n", self.names[0], "link", "set", f"port{number}", "up")

    def pids(self, number: int) -> list[int]:
        """Processes on a host; none if it is gone."""
        found = _ip("netns", "pids", self.names[number], check=False)
        return [int(pid) for pid in found.stdout.split()] if not found.returncode else []

    def kill(self, number: int) -> None:
        """Kill everything that runs on a host."""
        for _ in range(20):
            pids = self.pids(number)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                return
            time.sleep(0.05)


class Cluster:
    """Ray on all hosts. folder: for its files and its token; a short path, since sockets lie in it.

    settings: variables of every Ray process and driver.
    """

    def __init__(self, hosts: Hosts, folder: Path, *, cores: int = CORES, token: bool = True, **settings: str) -> None:
        self.hosts, self.folder, self._cores = hosts, folder, cores
        self.address = f"{Hosts.address(0)}:{HEAD_PORT}"
        self.engine = f"ray:{self.address}"
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "token").chmod(0o600)
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        own = {key: value for key, value in variables().items() if not key.startswith("RAY_")}
        said = auth if token else {"RAY_AUTH_MODE": "disabled"}
        self.environment = {**own, **_QUIET, **said, "OMP_NUM_THREADS": "1", **settings}

    def __enter__(self) -> Cluster:
        for number in range(len(self.hosts.names)):
            self.start_node(number)
        return self

    def __exit__(self, *exc: object) -> None:
        """The hosts end what runs on them."""

    def start_node(self, number: int) -> None:
        """Start Ray on a host. Raises RuntimeError with what it said if it does not start."""
        where = (
            ["--head", f"--port={HEAD_PORT}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
            if number == 0
            else [f"--address={self.address}"]
        )
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *where),
            *(f"--node-ip-address={Hosts.address(number)}", f"--num-cpus={self._cores}"),
            *("--object-store-memory=100000000", "--disable-usage-stats"),
        ]
        log = self.folder / f"start-{number}.log"
        with log.open("wb") as said:
            started = self.hosts.start(
                number, command, env=self.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            status = started.wait()
        if status:
            raise RuntimeError(f"ray start on host {number} ended with {status}:\n{log.read_text(errors='replace')}")

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command beside the head, with the cluster as its engine."""
        environment = {
            **self.environment,
            "RAY_ADDRESS": self.address,
            ENGINE_VARIABLE: self.engine,
            **options.pop("env", {}),
        }
        return self.hosts.start(0, command, env=environment, **options)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.ray_cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2, help="of the cluster, the head among them (default 2)")
    parser.add_argument("--cores", type=int, default=CORES, help=f"of each node (default {CORES})")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what runs beside the head")
    options = parser.parse_args(arguments)
    if not options.command or options.nodes < 1 or options.cores < 1:
        parser.error("a command, one node or more, and one core or more, required")
    reason = why_not()
    if reason:
        print(
            f"ray: a network namespace for the cluster required, since Ray listens on all interfaces; {reason}. "
            "ENGINE=processes:2 needs none; a cluster of your own: docs/scale.md",
            file=sys.stderr,
        )
        return IMPOSSIBLE
    with (
        tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        Hosts(options.nodes) as hosts,
        Cluster(hosts, Path(folder), cores=options.cores) as cluster,
    ):
        size = f"{counted(options.nodes, 'node')} of {counted(options.cores, 'core')}"
        print(f"ray: {size} in network namespaces, head {cluster.address}", flush=True)
        return cluster.start(options.command).wait()


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done


if __name__ == "__main__":
    sys.exit(main())
