"""Retrieval: a user's state that is kept, and the items whose vectors are nearest."""
