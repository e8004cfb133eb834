"""Deleting users from what serving keeps outside the catalog: a store, files of an impression log, a file of states, a
folder of sequences.

What a process holds in memory stays there: a running server keeps contexts and states of its users until it ends.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pyiceberg.catalog import Catalog

from reqdedup.sequences.online import delete_from_online, online_namespace
from reqdedup.sequences.places import open_store
from reqdedup.serving.retrieval.states_file import delete_states, model_of
from reqdedup.storage.maintenance.everywhere import PlaceReport

_NOT_NAMED = {
    "store": "the store of a server, if there is one: name it (--store)",
    "impressions": "files of a server's impression log, if there are some: name their folder (--impressions)",
    "user_states": "the file of user states that a server starts with, if there is one: name it (--user-states)",
    "online": "the folder of an online store of sequences, if there is one: name it (--online)",
}
_RUNNING = "the memory of running servers, which keep contexts and states until they end"


@dataclass(frozen=True, kw_only=True)
class ServedPlaces:
    """Places, as `reqdedup serve` is told them. store: file or URL.  impressions: folder.  user_states: file.
    online: folder of an online store of sequences.

    Raises ValueError for one that is not there: what was not searched must not be taken for clean.
    """

    store: str | None = None
    impressions: Path | None = None
    user_states: Path | None = None
    online: Path | None = None

    def __post_init__(self) -> None:
        if self.impressions is not None and not self.impressions.is_dir():
            raise ValueError(f"{self.impressions}: the folder of an impression log required, found none")
        if self.user_states is not None:
            model_of(self.user_states)
        if self.store is not None:
            open_store(self.store).close()
        if self.online is not None:
            online_namespace(self.online)

    def check_searched(self, namespaces: Collection[str]) -> None:
        """Raise ValueError unless the tables that the online store is made from are among those searched."""
        if self.online is not None and (name := online_namespace(self.online)) not in namespaces:
            raise ValueError(
                f"{self.online}: an online store of a namespace that is searched ({', '.join(namespaces) or 'none'}) "
                f"required, found one of {name}; name it too, since the store is made anew from its tables"
            )

    @property
    def not_searched(self) -> list[str]:
        return [*(said for name, said in _NOT_NAMED.items() if getattr(self, name) is None), _RUNNING]

    def requests(self, users: Collection[int]) -> set[int]:
        """Ids of the requests of these users in the log."""
        if self.impressions is None:
            return set()
        from reqdedup.serving.impressions.log import log_files, read_log  # needs the extra `serve`

        shown = (one for path in log_files(self.impressions) for one in read_log(path).impressions)
        return {one.request_id for one in shown if one.user_id in users}

    def delete_clicks(self, requests: Collection[int], *, dry_run: bool) -> list[PlaceReport]:
        """The first step, from the log: as long as the impressions are somewhere they tell whose the clicks are.
        requests: all of the users', those of tables included."""
        return self._from_log(frozenset(), requests, "clicks", dry_run=dry_run)

    def delete_rest(self, users: Collection[int], catalog: Catalog, *, dry_run: bool) -> list[PlaceReport]:
        """The last step: impressions of the log, the store, the states, the sequences, made anew from the tables."""
        reports = self._from_log(users, frozenset(), "impressions", dry_run=dry_run)
        if self.store is not None:
            with closing(open_store(self.store)) as store:
                found = [store.end(user) is not None if dry_run else store.delete_user(user) for user in users]
            reports.append(PlaceReport(place=f"store {self.store}", num_records=sum(found)))
        if self.user_states is not None:
            num_states = delete_states(self.user_states, users, dry_run=dry_run)
            reports.append(PlaceReport(place=f"user states {self.user_states}", num_records=num_states))
        if self.online is not None:
            done = delete_from_online(self.online, catalog, users, dry_run=dry_run)
            reports.append(PlaceReport(place=f"sequences {self.online}", num_records=done[0], num_held=done[1]))
        return reports

    def _from_log(
        self, users: Collection[int], requests: Collection[int], what: str, *, dry_run: bool
    ) -> list[PlaceReport]:
        if self.impressions is None:
            return []
        from reqdedup.serving.impressions.log import delete_records

        done = delete_records(self.impressions, users, requests, dry_run=dry_run)
        return [PlaceReport(place=f"{what} of log {self.impressions}", num_records=done[0], num_held=done[1])]
