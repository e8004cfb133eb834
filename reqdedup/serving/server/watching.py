"""Looks at the places of bundles, and has them loaded whenever they hold others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from reqdedup.models.bundle import fingerprint_of
from reqdedup.serving.bundles.places import find_bundles, find_manifests
from reqdedup.serving.scheduler import OverloadedError

logger = logging.getLogger(__name__)


class Watch:
    """To be made before what lies in the places is loaded: what is published meanwhile is a change too."""

    def __init__(self, places: Sequence[str], *, copies: str | None) -> None:
        """copies: folder for those of an object store."""
        self._copies = Path(copies) if copies else None
        self._seen: dict[str, list[str] | None] = dict.fromkeys(places)
        """Fingerprints of the bundles in each place; None: they are to be loaded, whatever they are."""
        self._said: dict[str, str] = {}
        for place in places:
            with suppress(ValueError, OSError):
                self._seen[place] = self.fingerprints(place)

    def run(self, load: Callable[[str], Any], interval_s: float, is_ending: threading.Event) -> None:
        """In a thread of its own. load: a place.

        A place that cannot be read, or copied, is tried again every time, and one that a worker broke off from; one
        that does not load, once it changes.
        """
        while not is_ending.wait(interval_s):
            for place in self._seen:
                self._look(place, load)

    def fingerprints(self, place: str) -> list[str]:
        """Of the bundles there, of which nothing but the manifests is read. Raises ValueError or OSError."""
        return [fingerprint_of(manifest) for manifest in find_manifests(place)]

    def fetch(self, place: str) -> None:
        """Have the bundles on this machine. Raises ValueError or OSError."""
        find_bundles(place, cache=self._copies)

    def _look(self, place: str, load: Callable[[str], Any]) -> None:
        try:
            now = self.fingerprints(place)
            if now == self._seen[place]:
                return
            self.fetch(place)
        except (ValueError, OSError) as error:
            if self._said.get(place) != str(error):
                self._said[place] = str(error)
                logger.warning("what serves stays, the place that is watched cannot be read: %s", error)
            return
        self._seen[place] = now
        with suppress(Exception):  # said by `Models`, shown by /v1/models; the next may load
            try:
                load(place)
            except OverloadedError:
                self._seen[place] = None
