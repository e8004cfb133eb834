"""What `reqdedup serve` is told, for the process that serves or for each of its workers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from reqdedup.serving.limits import CACHE_BYTES, MAX_FEATURE_AGE_S, Limits
from reqdedup.serving.scheduler import SchedulerLimits
from reqdedup.serving.server.door import Access


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """bundles: places of them, one bundle for each task.  copies: folder for those of an object store.
    store: file of the embedded store, None if histories come with requests.
    user_states: file of states that were computed ahead, of the retrieval model; None: there is none.
    impressions: folder of the log of what /v1/recommend shows; None: it is not logged.
    funnel: TOML file of /v1/recommend.  may_load_from: folder whose bundles may be loaded by request; None: none.
    watch_s: how often the bundles are looked at for a change, 0: never.
    max_feature_age_s: of stored request features, beyond which answers are marked.
    serving: file in which the workers of one server say what serves, for one that is started again; None: no workers.
    cache_bytes: kept contexts of a process.  kv_type: how their keys and values are kept.
    workers: processes.  drain_s: for what was admitted when the server is told to end [seconds].
    """

    bundles: tuple[str, ...]
    copies: str | None = None
    store: str | None = None
    user_states: str | None = None
    impressions: str | None = None
    funnel: str | None = None
    may_load_from: str | None = None
    watch_s: float = 0.0
    serving: str | None = None
    on_missing_history: Literal["refuse", "empty"] = "refuse"
    max_feature_age_s: float = MAX_FEATURE_AGE_S
    deterministic: bool = True
    device: str = "cpu"
    cache_bytes: int = CACHE_BYTES
    kv_type: Literal["full", "float16", "int8"] = "full"
    workers: int = 1
    drain_s: float = 30.0
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    queue: SchedulerLimits = field(default_factory=SchedulerLimits)

    def __post_init__(self) -> None:
        if not self.bundles:
            raise ValueError("a bundle required, found none; `reqdedup export` writes one")
        if self.workers < 1 or self.cache_bytes < 0:
            raise ValueError(
                f"at least one worker and a cache of at least 0 bytes required, found {self.workers} and "
                f"{self.cache_bytes}"
            )

    @property
    def folders(self) -> tuple[str, ...]:
        """Those in which bundles lie, longest first: no answer tells them."""
        told = [self.may_load_from, self.copies, *(place.rstrip("/").rpartition("/")[0] for place in self.bundles)]
        real = [os.path.realpath(folder) for folder in told if folder and "://" not in folder]
        return tuple(sorted({f"{folder}/" for folder in (*told, *real) if folder}, key=len, reverse=True))

    def to_json(self) -> str:
        """For a worker's standard input; it holds the token."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ServeSettings:
        values: dict[str, Any] = json.loads(text)
        kinds = {"access": Access, "limits": Limits, "queue": SchedulerLimits}
        found = {field.name: values[field.name] for field in fields(cls)}
        return cls(
            **{name: kinds[name](**value) if name in kinds else value for name, value in found.items()}
            | {"bundles": tuple(values["bundles"])}
        )
