"""Keeping tables in shape: compaction, expiry and sweep, health and bucket counts, deleting users, conversion."""

from reqdedup.storage.maintenance.compact import CompactReport, compact

__all__ = ["CompactReport", "compact"]
