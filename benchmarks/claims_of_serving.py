"""What is claimed of serving, from the rows of `benchmarks.serving*` and `benchmarks.rerank`."""

from __future__ import annotations

from benchmarks.claim import Claim


def serving(text: str, ours: str, *rows: tuple[str, str], module: str = "serving", only: str = "") -> Claim:
    """A claim about serving, its rows named a, b, ... in order.  module: of the benchmarks.  only: a part of it."""
    command = f"OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.{module}" + (only and f" --only {only}")
    return Claim(file=module, rows=dict(zip("abc", rows, strict=False)), text=text, ours=ours, command=command)


TWO_RATIOS = "{a[value]:.3g}x; {b[value]:.3g}x less CPU"
HTTP = "http cost, L 512, 100 candidates"

CLAIMS = (
    *(
        serving(
            f"ranking, {shape}, users that come back: kept contexts against one per request, fast; deterministic",
            TWO_RATIOS,
            *((f"kept, {shape}", f"{mode}{step}") for mode in ("fast", "deterministic")),
        )
        for length in (512, 2048)
        for shape, step in ((f"L {length}, 10 candidates", ", 8 a step"), (f"L {length}, 100 candidates", ""))
    ),
    serving(
        "ranking, L 512, 100 candidates, against the core of a server by hand that keeps contexts: one request a "
        "step; 8",
        "{a[value]:.2f}x; {b[value]:.2f}x",
        *(("by hand, L 512, 100 candidates", f"fast{step}") for step in ("", ", 8 a step")),
    ),
    serving(
        "ranking over HTTP, L 512, 100 candidates, users that come back, against a server that computes everything per "
        "candidate: context once per request; kept and batched",
        TWO_RATIOS,
        *((HTTP + ", beside naive", variant) for variant in ("once", "fast")),
        module="serving_http",
        only="cost",
    ),
    serving(
        "the same, kept contexts against one per request, fast; deterministic; fast against the strongest server by "
        "hand",
        "{a[value]:.3g}x; {b[value]:.3g}x; {c[value]:.2f}x less CPU ({c[spread][0]:.2f} to {c[spread][1]:.2f})",
        *((HTTP + ", beside once", variant) for variant in ("fast", "deterministic")),
        (HTTP + ", beside by_hand", "fast"),
        module="serving_http",
        only="cost",
    ),
    serving(
        "p99 of the answered, L 512, 100 candidates, one worker, open loop: at 70% of saturation; at 3 times "
        "saturation",
        "{a[value]:.3g} ms, p50 {a[p50]:.2g}; {b[value]:.3g} ms, p99 at saturation {b[p99_at_saturation]:.3g}",
        *(("http latency, L 512, 100 candidates", f"{name} of saturation") for name in ("70%", "3x")),
        module="serving_http",
        only="latency",
    ),
    serving(
        "bytes of a request on the wire, 500 candidates, 200 request and 300 item features of which half are read, "
        "against everything per candidate: JSON; Arrow; Arrow and trimmed",
        "{a[value]:.3g}x; {b[value]:.3g}x; {c[value]:.3g}x fewer bytes",
        *(
            ("http bytes, 500 candidates", variant)
            for variant in ("once, JSON", "once, Arrow", "once and trimmed, Arrow")
        ),
        module="serving_http",
        only="wire",
    ),
    serving(
        "retrieval, {a[sizes][items]:,} items of {a[sizes][width]} dimensions against exact search; recall@100; "
        "index opened",
        "{a[value]:.3g}x less CPU; {b[value]:.2f}; {c[value]:.2g} ms",
        ("retrieval, clustered vectors, beside faiss flat", "approximate"),
        *(("retrieval, clustered vectors", variant) for variant in ("recall@100", "index opened")),
        module="serving_retrieval",
    ),
    serving(
        "the same, vectors that a model was trained to",
        "{a[value]:.3g}x less CPU; {b[value]:.2f}; {c[value]:.2g} ms",
        ("retrieval, trained vectors, beside faiss flat", "approximate"),
        *(("retrieval, trained vectors", variant) for variant in ("recall@100", "index opened")),
        module="serving_retrieval",
    ),
    serving(
        "a kept user state against the whole user tower, 64; 512 events",
        TWO_RATIOS,
        *((f"user state kept, {events} events: head", "head") for events in (64, 512)),
        module="serving_retrieval",
        only="state",
    ),
    serving(
        "windowed SSD, {a[sizes][candidates]} candidates of {a[sizes][width]} dimensions, {a[sizes][picks]} picks: "
        "against pyversity; against a QR at every pick",
        TWO_RATIOS,
        *((f"windowed SSD, beside {rival}", "reqdedup") for rival in ("pyversity", "its definition")),
        module="rerank",
    ),
)
