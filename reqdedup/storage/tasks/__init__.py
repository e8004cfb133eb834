"""Operations as tasks: planned and committed here, done wherever an engine does them.

    plan (driver)            run (anywhere)                        commit (driver)
    settings, buckets   ->   read, write, verify: files, Written   ->   adopt, gate, one commit per group of buckets

A task is pure: running it twice makes two sets of files, and what the driver has received first is committed. All tasks
of a write encode a column alike (`alike`), so that a bucket's bytes do not depend on who wrote it, or when. Files carry
the write id, so that an abort deletes what it left (`leftovers`). docs/decisions/0081.
"""

from reqdedup.storage.tasks.alike import BucketTask, adopt_all, is_decided, run_alike
from reqdedup.storage.tasks.groups import GroupCommits, Landed, Part, groups_of
from reqdedup.storage.tasks.leftovers import remove_left

__all__ = [
    "BucketTask",
    "GroupCommits",
    "Landed",
    "Part",
    "adopt_all",
    "groups_of",
    "is_decided",
    "remove_left",
    "run_alike",
]
