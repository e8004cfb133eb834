"""Merge join of bucketed tables without a shuffle."""
