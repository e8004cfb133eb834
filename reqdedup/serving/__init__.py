"""Serving: a user is read and computed once per request, and an answer has the same bits whatever the caches held."""
