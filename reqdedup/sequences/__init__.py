"""User sequences: what was delivered becomes a timeline of events per user, and requests see windows of it.

definition, predicate   what a sequence is; published: the table of definitions; executors: columns that you compute
naive                   the same as plain loops: what everything else must equal
sources, kafka          where events come from
tables, columns         what `raw_events` and the others are; a column of theirs as numpy
intake -> batch         `raw_events` -> timeline_builder -> `user_events`; delivered, lookups, standing: what it reads
corrections, retention  one enrichment or some days made anew; what nobody keeps any longer is cleared
windows                 where the window of a request is cut, in one place
ends, training_table    history_end of requests, their histories as blobs, and a table of them to train on
pointers                the same table without histories, joined with the timeline as it is read
quality, shadow         how good sequences are, and how alike two ways to make them; status: where the timeline stands
view, speed, online     a batch view and what was put since: `fetch`; sequence_store: that as a server's store
store                   timelines and request features as a server reads them: sqlite_store (sqlite_file), valkey_store
                        (valkey_scripts), packing: their bytes; filling: from request tables; places: opening one
namespace               all verbs of a namespace as one object
"""
