"""What is claimed of user sequences, from the rows of `benchmarks.sequences`."""

from __future__ import annotations

from benchmarks.claim import Claim


def sequences(text: str, ours: str, **rows: tuple[str, str]) -> Claim:
    return Claim(file="sequences", rows=rows, text=text, ours=ours, command=".venv/bin/python -m benchmarks.sequences")


NARROW = "3 of 9 columns of a sequence"


CLAIMS = (
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
        "3 of 9 columns of a sequence: bytes against whole events; CPU of the fetch against unpickling them, and "
        "against a packed record at a known place",
        "{a[value]:.3g}x fewer; {b[value]:.3g}x, {c[value]:.2g}x less CPU",
        a=(NARROW, "bytes"),
        b=(NARROW, "against pickled rows"),
        c=(NARROW, "against packed events"),
    ),
    sequences(
        "a further training table as pointers, against item ids and embeddings as blobs; the first saves nothing, "
        "since it needs the timeline",
        "{a[value]:.3g}x fewer bytes",
        a=("a further training table as pointers", "reqdedup"),
    ),
    sequences(
        "memory that an `advance` adds, at ten times the events of a day",
        "{a[value]:.3g}x",
        a=("memory of advance", "ten times the events"),
    ),
)
