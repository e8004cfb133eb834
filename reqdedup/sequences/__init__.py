"""User sequences: what was delivered becomes a timeline of events per user, and requests see windows of it.

definition, predicate   what a sequence is; published: the table of definitions; executors: columns that you compute
naive                   the same as plain loops: what everything else must equal
intake -> batch         `raw_events` -> engine -> `user_events`, the timeline; delivered, lookups: what it reads
ends, training_table    history_end of requests, their histories as blobs, and a table of them to train on
pointers                the same table without histories, joined with the timeline as it is read
quality, shadow         how good sequences are, and how alike two ways to make them
view, speed, online     a batch view and what was put since: `fetch`
store                   timelines and request features as a server reads them, filled from request tables
"""
