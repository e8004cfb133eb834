"""Does training on request-sorted, deduplicated batches cost quality, and what brings it back? `make study`."""
