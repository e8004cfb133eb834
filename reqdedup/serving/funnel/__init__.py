"""The funnel: retrieval, light ranking, ranking and re-ranking as one call."""
