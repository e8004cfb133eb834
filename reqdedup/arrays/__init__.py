"""Numpy verbs, one spelling each: runs and order of sorted keys, matching, windows over packed values, hashing."""
