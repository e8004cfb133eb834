"""Counters, gauges and histograms, written in the text form that Prometheus reads (version 0.0.4).

By hand because it is little: the client library of Prometheus would be one more dependency for these lines.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """All metrics of one process. labels: on every sample, the worker's number for example."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels = tuple((labels or {}).items())
        self._lock = threading.Lock()
        self._described: dict[str, tuple[str, str]] = {}
        self._values: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, list[float]]] = {}
        self._read: list[tuple[str, Callable[[], Mapping[Labels, float] | float]]] = []

    def describe(self, name: str, kind: str, help: str) -> None:
        """kind: counter, gauge or histogram. Counters and gauges without labels begin at 0."""
        self._described[name] = (kind, help)
        if kind == "histogram":
            self._histograms[name] = {}
        else:
            self._values[name] = {}

    def read(self, name: str, kind: str, help: str, value: Callable[[], Mapping[Labels, float] | float]) -> None:
        """A metric whose value is asked for when it is written."""
        self.describe(name, kind, help)
        self._read.append((name, value))

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        key = tuple(labels.items())
        with self._lock:
            values = self._values[name]
            values[key] = values.get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._values[name][tuple(labels.items())] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        key = tuple(labels.items())
        with self._lock:
            found = self._histograms[name].get(key)
            if found is None:
                found = self._histograms[name][key] = [0.0] * (len(SECONDS) + 2)
            found[bisect_left(SECONDS, seconds)] += 1
            found[-1] += seconds

    def value(self, name: str, **labels: str) -> float:
        """Of a counter or a gauge; of a histogram how many were observed."""
        key = tuple(labels.items())
        if name in self._histograms:
            return sum(self._histograms[name].get(key, [0.0])[:-1])
        return self._values[name].get(key, 0.0)

    def text(self) -> str:
        """Everything, for Prometheus."""
        for name, value in self._read:
            found = value()
            with self._lock:
                self._values[name] = dict(found) if isinstance(found, Mapping) else {(): found}
        lines: list[str] = []
        with self._lock:
            for name, (kind, help) in self._described.items():
                lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
                if kind == "histogram":
                    for labels, counts in self._histograms[name].items():
                        lines += self._histogram(name, labels, counts)
                else:
                    lines += [self._sample(name, *one) for one in (self._values[name] or {(): 0.0}).items()]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str, labels: Labels, counts: list[float]) -> Iterable[str]:
        total = 0.0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), counts[:-1], strict=True):
            total += count
            yield self._sample(f"{name}_bucket", (*labels, ("le", bound)), total)
        yield self._sample(f"{name}_sum", labels, counts[-1])
        yield self._sample(f"{name}_count", labels, total)

    def _sample(self, name: str, labels: Labels, value: float) -> str:
        inside = ",".join(f'{key}="{_escaped(one)}"' for key, one in (*labels, *self._labels))
        number = int(value) if float(value).is_integer() else value
        return f"{name}{{{inside}}} {number}" if inside else f"{name} {number}"


def merged(texts: Iterable[str]) -> str:
    """The metrics of several processes as one text: each described once, the samples of all below it."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                heads[name], _ = [line], samples.setdefault(name, [])
            elif line.startswith("# TYPE "):
                heads[name].append(line)
            elif line:
                samples[name].append(line)
    return "\n".join(line for name in heads for line in (*heads[name], *samples[name])) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r'([\\"])', r"\\\1", text).replace("\n", "\\n")
