"""Which worker process holds a user's context: the bucket of the user, as the tables have it, modulo the workers.

    worker = (murmur3_32(user_id as 8 little-endian bytes) & 0x7FFFFFFF) mod N

Source: Apache Iceberg, table specification, appendix B (bucket transform of a long).
"""

from __future__ import annotations

import struct

import mmh3


def worker_of(user_id: int, num_workers: int) -> int:
    """0 <= worker < num_workers: equal to `buckets_of([user_id], num_workers)`, without Arrow."""
    return (mmh3.hash(struct.pack("<q", user_id)) & 0x7FFF_FFFF) % num_workers
