"""Ranking: contexts that are kept, extended or computed, and the candidates that cross with them."""
