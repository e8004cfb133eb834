"""What is claimed of user sequences, from the rows of `benchmarks.sequences`."""

from __future__ import annotations

from benchmarks.claim import Claim


def sequences(text: str, ours: str, **rows: tuple[str, str]) -> Claim:
    return Claim(
        file="sequences", rows=rows, text=text, ours=ours, command=".venv/bin/python -m benchmarks.sequences"
    )  # fmt: skip


DAILY = "daily update{} against all sequences from {} events"
DAILY_RATIOS = "{a[value]:.3g}x less CPU, {b[value]:.3g}x fewer bytes; {c[value]:.3g}x, {d[value]:.3g}x"
NARROW = "3 of 9 columns of a sequence"


def daily(size: str, text: str) -> Claim:
    """A day appended to the timeline, beside sequences that are written anew."""
    raw, enriched = (DAILY.format(size, which) for which in ("raw", "enriched"))
    both = {"a": (raw, "CPU"), "b": (raw, "bytes"), "c": (enriched, "CPU"), "d": (enriched, "bytes")}
    return sequences(text, DAILY_RATIOS, **both)


CLAIMS = (
    daily(
        "",
        "a day of {a[sizes][users]:,} users' events appended to the timeline, against writing all sequences anew: from "
        "raw events; from enriched ones (Polars)",
    ),
    daily(" at ten times the events", "the same at ten times the users, where what a commit costs weighs little"),
    sequences(
        "the same day appended to a timeline that was made day by day and never compacted: with a file of where users "
        "stand, against reading it out of the timeline's files",
        "{a[value]:.3g}x less CPU ({a[spread][0]:.3g} to {a[spread][1]:.3g})",
        a=("daily update of a timeline of daily files", "a file of where users stand"),
    ),
    sequences(
        "histories of {a[sizes][requests]:,} requests against a range join, the better of Polars and DuckDB: both from "
        "the same files; both from events in memory",
        "{a[value]:.3g}x; {b[value]:.3g}x less CPU",
        a=("histories of requests", "from files"),
        b=("histories of requests", "in memory"),
    ),
    sequences(
        "enrichments looked up once per event, against once per event of a sequence; requests at which the store, the "
        "timeline and plain loops agree, of as many",
        "{a[value]:.3g}x fewer; {b[value]:,} of {b[value]:,}",
        a=("enrichment look-ups", "one per event"),
        b=("online = plain loops", "requests compared"),
    ),
    sequences(
        "a fetch of 500 events x 4 columns in process: median; p99",
        "{a[median_us]:.0f} us; {a[value]:.0f} us",
        a=("fetch 500 events x 4 columns", "in process"),
    ),
    sequences(
        "3 of 9 columns of a sequence: bytes against whole events; CPU of the fetch against unpickling them, and against "
        "a packed record at a known place",
        "{a[value]:.3g}x fewer; {b[value]:.3g}x, {c[value]:.2g}x less CPU",
        a=(NARROW, "bytes"),
        b=(NARROW, "against pickled rows"),
        c=(NARROW, "against packed events"),
    ),
    sequences(
        "CPU of reading the timeline over that of one file a bucket: after compaction, one month; two months, whose "
        "files are put into one order",
        "{a[value]:.3g}x; {b[value]:.3g}x",
        a=("reading the timeline", "after compaction, one month"),
        b=("reading the timeline", "after compaction, 2 months"),
    ),
    sequences(
        "a training table as pointers, against item ids and embeddings as blobs: the first, with the events of its "
        "users; each further one",
        "{a[value]:.3g}x; {b[value]:.3g}x fewer bytes",
        a=("the first training table as pointers", "with the events of its users"),
        b=("a further training table as pointers", "reqdedup"),
    ),
    sequences(
        "one enrichment corrected: bytes written over those of the files with a value that changes",
        "{a[value]:.3g}x",
        a=("correction of one enrichment", "ten rare items"),
    ),
    sequences(
        "memory that an `advance` adds, at ten times the {a[sizes][events]:,} events of a day, in parts of one size "
        "(at most {a[sizes][part_rows]:,} events)",
        "{a[value]:.3g}x",
        a=("memory of advance", "ten times the events"),
    ),
)
