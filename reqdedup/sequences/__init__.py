"""User sequences: a timeline of events per user, and windows of it. See `store`."""
