"""Reading tables as deduplicated batches: files of a snapshot, sorted buckets, features by position."""
