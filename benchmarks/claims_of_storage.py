"""What is claimed of storage and of URLs as items, from the rows of `benchmarks.storage_*` and `benchmarks.urls`.

The log that has the shape of a real one comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.claim import Claim


def storage(part: str, rows: Mapping[str, tuple[str, str]], text: str, ours: str, article: str = "") -> Claim:
    """A claim about storage. part: of `benchmarks.storage`."""
    command = f".venv/bin/python -m benchmarks.storage --only {part}"
    return Claim(file=f"storage_{part}", rows=rows, text=text, ours=ours, article=article, command=command)


OPTIONS = {
    "engines": "engines --times 60",
    "engines_ray": "engines --ray 1 10 60",
    "engines_break_even": "engines --break-even",
}
"""Of `benchmarks.storage_engines`, by the file of its results."""


def scale(part: str, text: str, ours: str, **rows: tuple[str, str]) -> Claim:
    """A claim about commits of large tables and tasks. part: of `benchmarks.storage_PART`, or one of its OPTIONS."""
    command = f".venv/bin/python -m benchmarks.storage_{OPTIONS.get(part, part)}"
    return Claim(file=f"storage_{part}", rows=rows, text=text, ours=ours, command=command)


def urls(text: str, ours: str, **rows: tuple[str, str]) -> Claim:
    """A claim about items that are named by URLs."""
    return Claim(file="urls", rows=rows, text=text, ours=ours, command=".venv/bin/python -m benchmarks.urls")


RATIO = "{a[value]:.3g}x, {a[fraction_of_limit]:.0%} of the store-once limit"
SPREAD = "{a[value]:.3g}x less CPU ({a[spread][0]:.3g} to {a[spread][1]:.3g})"
SORTING = "10-50x, from sorting"
READ = "read one sequence column, {}: {}"
JOIN = "bucket join, 5M x 5M rows, {}: {}"
WRITE = "write BY_REQUEST, {} tokens: {}"
APPEND = "by_request against append_one_commit"

NEWS = "news log, {} rows: {}"
NEWS_CPU = "news log, {} rows, {}: CPU time of a write over Polars' sort and sink"
NEWS_PEAK = "news log, {} rows, {}: peak memory of a write over Polars' sort and sink"
AGAINST_CONTROL = "history column against the shuffled control with dense ids"
NEWS_SIZES = ("190,000", "2,000,000")

CLAIMS = (
    *(
        storage(
            "news",
            {
                "a": (NEWS.format(rows, AGAINST_CONTROL), "BY_REQUEST"),
                "b": (NEWS.format(rows, AGAINST_CONTROL), "SORTED_LARGE_PAGES"),
                **{
                    name: (NEWS.format(rows, f"whole table against {name}'s sorted files"), "BY_REQUEST")
                    for name in ("polars", "duckdb")
                },
            },
            "a log like a real one of news (popular items, histories of 32 events, 1.08 requests a user), "
            "{a[sizes][rows]:,} rows: history column, `BY_REQUEST`; plain lists; whole table, `BY_REQUEST`, against the "
            "sorted zstd file of Polars; of DuckDB",
            RATIO + "; {b[value]:.3g}x; {polars[value]:.3g}x; {duckdb[value]:.3g}x",
            SORTING,
        )
        for rows in NEWS_SIZES
    ),
    *(
        storage(
            "news",
            {
                "w": (NEWS_CPU.format(rows, "all cores"), "write"),
                "c": (NEWS_CPU.format(rows, "all cores"), "convert"),
                "m": (NEWS_PEAK.format(rows, "all cores"), "write"),
                "n": (NEWS_PEAK.format(rows, "all cores"), "convert"),
            },
            "the same, {w[sizes][rows]:,} rows, over Polars' `sort().sink_parquet()`: `write`; `convert` with its "
            "verification",
            "{w[value]:.2g}x; {c[value]:.2g}x the CPU ({c[spread][0]:.2g} to {c[spread][1]:.2g}), {m[value]:.2g}x; "
            "{n[value]:.2g}x the peak memory",
        )
        for rows in NEWS_SIZES
    ),
    storage(
        "ids",
        {
            "h": ("text ids of items, 190,000 rows: history_item_id against hashed ids", "dense"),
            "w": ("text ids of items, 190,000 rows: all columns against hashed ids", "dense"),
            "v": ("text ids of items, 190,000 rows: vocabulary", "dense"),
        },
        "the same, {h[sizes][rows]:,} rows of text ids, dense ids against hashed ones: history column; whole table",
        "{h[value]:.3g}x; {w[value]:.3g}x fewer bytes, beside {v[value]:.2g} bytes a key, once for all tables",
    ),
    storage(
        "layouts",
        {"a": ("shared_16k", "by_request")},
        "sequence columns, {a[sizes][max_history]:,} tokens, fan-out {a[sizes][fan_out]:.0f}, 3 requests a user that "
        "share "
        "history: `BY_REQUEST` against shuffled",
        RATIO,
        SORTING,
    ),
    storage(
        "layouts",
        {"a": ("shared_16k", "sorted")},
        "the same, the published layout (`SORTED`, writer's defaults)",
        "{a[value]:.3g}x",
        SORTING,
    ),
    storage(
        "layouts",
        {"a": ("shared_16k", "sorted_large_pages")},
        "the same, plain lists that any engine reads (`SORTED_LARGE_PAGES`)",
        "{a[value]:.3g}x",
    ),
    storage(
        "layouts",
        {"a": ("one_request_16k", "by_request"), "b": ("one_request_16k", "sorted_large_pages")},
        "one request per user, fan-out {a[sizes][fan_out]:.0f}: `BY_REQUEST`; plain lists",
        RATIO + "; {b[value]:.3g}x",
    ),
    storage(
        "layouts",
        {"a": ("short_history", "by_request")},
        "short histories ({a[sizes][max_history]} tokens), fan-out {a[sizes][fan_out]:.0f}: `BY_REQUEST`",
        RATIO,
    ),
    storage(
        "features",
        {
            "a": ("count of every request, ids in order", "by position"),
            "b": ("count of every request, ids in order", "stored keys"),
        },
        "one integer feature for all of {a[sizes][requests]:,} requests, bytes written over bytes of the values",
        "{a[value]:.4g}x by position, {b[value]:.2g}x with stored keys",
    ),
    storage(
        "read",
        {
            "a": (READ.format("whole", "CPU time"), "by_request_whole against sorted_whole"),
            "b": (READ.format("whole", "peak memory"), "by_request_whole against sorted_whole"),
        },
        "reading one {a[sizes][max_history]:,}-token sequence column whole, against the sorted list table",
        SPREAD + ", {b[value]:.3g}x less peak memory",
    ),
    *(
        storage(
            "write",
            {
                "a": (WRITE.format(name, "CPU time"), APPEND),
                "b": (WRITE.format(name, "peak memory"), APPEND),
            },
            "writing `BY_REQUEST`, {a[sizes][max_history]:,} tokens, fan-out {a[sizes][fan_out]:.0f}, against "
            "pyiceberg's "
            "`append` of the same rows as sorted lists",
            SPREAD + ", {b[value]:.2g}x less peak memory",
        )
        for name in ("16k", "2k", "64")
    ),
    *(
        storage(
            "join",
            {
                "t": (JOIN.format(content, "wall time"), "reqdedup against best_full"),
                "c": (JOIN.format(content, "CPU time"), "reqdedup against best_full"),
                "m": (JOIN.format(content, "peak memory"), "reqdedup against best_full"),
                "k": (JOIN.format(content, "wall time"), "reqdedup_compact against best_full"),
                "b": (JOIN.format(content, "wall time"), "reqdedup against best_per_bucket"),
                "bm": (JOIN.format(content, "peak memory"), "reqdedup against best_per_bucket"),
            },
            "bucket join of {t[sizes][rows]:,} rows with as many, " + content + ", against the best full hash join of "
            "DuckDB, Polars and Acero",
            "{t[value]:.3g}x less time ({t[spread][0]:.3g} to {t[spread][1]:.3g}; {k[value]:.3g}x with compact "
            "encodings), "
            "{c[value]:.3g}x less CPU, {m[value]:.3g}x less peak memory; against the best of them run per bucket "
            "{b[value]:.3g}x less time, where the least peak memory is {bm[value]:.2g}x ours",
        )
        for content in ("scalars only", "histories of 64 events")
    ),
    storage(
        "write",
        {"a": ("write BY_REQUEST, a log 10 times as long: peak memory", "buckets in proportion")},
        "peak memory of writing a log 10 times as long, buckets in proportion",
        "{a[value]:.3g}x",
    ),
    storage(
        "maintenance",
        {"a": ("one user deleted: files rewritten", "main table")},
        "one user deleted: files rewritten, of {a[table_files]} in {a[sizes][buckets]} buckets",
        "{a[files]}, all of the user's bucket; {a[value]:.1%} of the bytes",
    ),
    scale(
        "commits",
        "one of {a[sizes][buckets]:,} buckets replaced in a table of {a[sizes][files]:,} files: manifests of consecutive "
        "buckets; one manifest for all",
        "{a[value]:.2g} s of CPU, {b[value]:,} bytes of manifests; {c[value]:.3g} s, {d[value]:,} bytes",
        a=("one bucket replaced", "manifests of consecutive buckets"),
        b=("one bucket replaced: manifests written", "manifests of consecutive buckets"),
        c=("one bucket replaced", "one manifest"),
        d=("one bucket replaced: manifests written", "one manifest"),
    ),
    scale(
        "commits",
        "all of {a[sizes][buckets]:,} buckets compacted in a table of {a[sizes][files]:,} files, metadata alone",
        "{a[value]:.2g} s of CPU in {a[commits]} commits",
        a=("all buckets compacted, metadata alone", "groups of buckets"),
    ),
    scale(
        "engines",
        "a log of {a[sizes][rows]:,} rows written by tasks: against `write`; against `write` and the two checksums "
        "that tasks take; two processes against one",
        "{a[value]:.3g}x; {b[value]:.3g}x the CPU; {c[value]:.3g}x less time ({c[spread][0]:.3g} to {c[spread][1]:.3g})",
        a=("a log written by tasks: CPU", "against write"),
        b=("a log written by tasks: CPU", "against write and checksums"),
        c=("a log written by tasks: wall time", "one process against two"),
    ),
    scale(
        "engines",
        "the same: tasks without checksums against `write`, which is what dividing costs; bytes exchanged, against one "
        "exchange file of all rows; peak memory of a map task; of the driver, {d[sizes][maps]:,} maps and "
        "{d[sizes][buckets]:,} buckets",
        "{a[value]:.3g}x the CPU ({a[spread][0]:.3g} to {a[spread][1]:.3g}); {b[value]:.3g}x; {m[value]:,.0f} bytes; "
        "{d[value]:,.0f} bytes",
        a=("a log written by tasks: CPU", "without checksums against write"),
        b=("a log written by tasks: bytes exchanged", "against one exchange file of all rows"),
        m=("a log written by tasks: peak memory of a map task", "imports apart"),
        d=("driver memory", "10,000 maps x 1,000 buckets"),
    ),
    *(
        scale(
            "engines_ray",
            "a log of {a[sizes][rows]:,} rows written by Ray, a core a node, the same bits as by one process: wall "
            "time of one node over that of two",
            "{a[value]:.3g}x ({a[spread][0]:.3g} to {a[spread][1]:.3g})",
            a=("a log written by tasks: wall time on Ray", f"one node against two, {times} laptop logs"),
        )
        for times in (1, 10, 60)
    ),
    *(
        scale(
            "engines_break_even",
            "a log of {a[sizes][rows]:,} rows written by tasks: wall time of `write` by one process over that of two, their "
            "start counted",
            "{a[value]:.3g}x ({a[spread][0]:.3g} to {a[spread][1]:.3g})",
            a=("a log written by tasks: break-even", f"two, {times} laptop logs"),
        )
        for times in ("0.1", "1", "10")
    ),
    urls(
        "items by URL per true page, {a[sizes][urls]:,} URLs of {a[sizes][domains]} sites: rules learned with stable "
        "fingerprints; with 5% unstable ones; w3lib; w3lib without utm_",
        "{a[value]:.3f}, {a[false_merges]} false merges; {b[value]:.3f}, {b[false_merges]}; {c[value]:.2f}, "
        "{c[false_merges]}; {d[value]:.2f}, {d[false_merges]}",
        a=("items per page, stable fingerprints", "reqdedup"),
        b=("items per page, 5% unstable fingerprints", "reqdedup"),
        c=("items per page, others", "w3lib"),
        d=("items per page, others", "w3lib without utm_"),
    ),
    urls(
        "pages looked at to learn them, against tests without an early end, which give the same rules; look-ups",
        "{a[value]:.2f}x; {b[value]:,.0f} URLs/s a core",
        a=("renders, stable fingerprints", "reqdedup"),
        b=("look-ups", "reqdedup"),
    ),
)
