"""The user sequences of one namespace as an object: what `rd.open().sequences("lake")` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog

from reqdedup.sequences import batch
from reqdedup.sequences.corrections import CorrectionReport, backfill_days, correct_enrichment
from reqdedup.sequences.definition import EventLog, SequenceDefinition
from reqdedup.sequences.ends import add_histories, fetch_sequence, history_ends
from reqdedup.sequences.intake import IntakeReport, deliver
from reqdedup.sequences.online import OnlineStore, open_online
from reqdedup.sequences.published import Change, check_definitions, publish_definitions, published_definitions
from reqdedup.sequences.retention import RetentionReport, apply_retention
from reqdedup.sequences.sequence_store import fill_from_timeline
from reqdedup.sequences.sources import EventSource
from reqdedup.sequences.status import timeline_status
from reqdedup.sequences.store import FilledStore, FillReport
from reqdedup.sequences.training_table import write_training_table
from reqdedup.storage import WriteReport


class NamespaceSequences:
    """Every verb is one function of this room, whose options and errors it has. catalog: gives the lake's."""

    def __init__(self, namespace: str, catalog: Callable[[], Catalog]) -> None:
        self.namespace, self._catalog = namespace, catalog

    def definitions(self) -> dict[str, SequenceDefinition]:
        """Those that hold now."""
        return published_definitions(self._catalog(), self.namespace)

    def check(self, definitions: Sequence[SequenceDefinition]) -> list[Change]:
        """What publishing these would change, and what of it is refused."""
        return check_definitions(definitions, self.definitions())

    def publish(self, log: EventLog, definitions: Sequence[SequenceDefinition]) -> list[Change]:
        """Make these the definitions that hold; see `publish_definitions`."""
        return publish_definitions(self._catalog(), self.namespace, log, definitions)

    def deliver(self, log: EventLog, source: EventSource) -> IntakeReport:
        """Append a source's events to `raw_events`; see `append_events`."""
        return deliver(self._catalog(), self.namespace, log, source)

    def advance(self, **options: Any) -> batch.AdvanceReport:
        """Bring the timeline to what was delivered; see `batch.advance`."""
        return batch.advance(self._catalog(), self.namespace, **options)

    def backfill(self, *, publish: bool = False, **options: Any) -> batch.AdvanceReport:
        """Stage a new version of the timeline; see `batch.backfill`. publish: make it the one that readers see."""
        return self._staged(batch.backfill(self._catalog(), self.namespace, **options), publish)

    def backfill_days(self, since: date, until: date | None = None, *, publish: bool = False) -> batch.AdvanceReport:
        """The same of what arrived on some days; see `corrections.backfill_days`."""
        return self._staged(backfill_days(self._catalog(), self.namespace, since, until), publish)

    def correct_enrichment(self, enrichment: str, *, publish: bool = False) -> CorrectionReport:
        """The same of one enrichment of every event; see `corrections.correct_enrichment`."""
        report = correct_enrichment(self._catalog(), self.namespace, enrichment)
        return self._staged(report, publish and report.num_files > 0)

    def _staged(self, report: Any, publish: bool) -> Any:
        if publish:
            batch.publish_timeline(self._catalog(), self.namespace)
        return report

    def apply_retention(self, *, apply: bool = False) -> RetentionReport:
        """Clear what is beyond the retention of every definition; see `retention.apply_retention`."""
        return apply_retention(self._catalog(), self.namespace, apply=apply)

    def compact(self) -> batch.AdvanceReport:
        """Make one file of the several that a bucket has in a month."""
        return batch.compact_timeline(self._catalog(), self.namespace)

    def status(self) -> dict[str, Any]:
        """Where the timeline stands."""
        return timeline_status(self._catalog(), self.namespace)

    def fetch(
        self, user_id: int, sequence: str, columns: Sequence[str] | None = None, *, at: datetime | None = None
    ) -> pa.Table:
        """A user's sequence from the timeline; see `fetch_sequence`."""
        return fetch_sequence(self._catalog(), self.namespace, user_id, sequence, columns, at=at)

    def history_ends(self, requests: pa.Table, *, version: int | None = None) -> pa.Table:
        """The requests with `history_end` and `timeline_version`; see `ends.history_ends`."""
        return history_ends(self._catalog(), self.namespace, requests, version=version)

    def add_histories(self, sequence: str, rows: pa.Table, **options: Any) -> Iterator[pa.RecordBatch]:
        """The rows with the histories of a sequence as blobs; see `ends.add_histories`."""
        return add_histories(self._catalog(), self.namespace, sequence, rows, **options)

    def write_training_table(self, table: str, sequence: str, rows: pa.Table, **options: Any) -> WriteReport:
        """Make `table` hold rows of requests with their histories; see `training_table.write_training_table`."""
        return write_training_table(self._catalog(), table, self.namespace, sequence, rows, **options)

    def fill_store(self, store: FilledStore, sequence: str) -> FillReport:
        """Bring a file or a server to a sequence of every user; see `sequence_store.fill_from_timeline`."""
        return fill_from_timeline(store, self._catalog(), self.namespace, sequence)

    def online(self, folder: Path | str) -> OnlineStore:
        """The store of a process that serves; see `open_online`."""
        return open_online(folder, self._catalog(), self.namespace)
