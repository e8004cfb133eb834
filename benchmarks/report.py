"""The tables of claims, written from `benchmarks/results`, so that no figure is typed by hand.

    python -m benchmarks.report           prints all claims
    python -m benchmarks.report --write   puts them into docs/claims.md, those of HEADLINES into README.md

A claim names its rows by file, claim and variant; its texts are format strings over them. A claim whose rows were not
measured yet is left out and named on stderr.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import claims_of_sequences, claims_of_serving, claims_of_storage, claims_of_training
from benchmarks.claim import Claim
from benchmarks.record import RESULTS

README = Path(__file__).resolve().parents[1] / "README.md"
PAGE = README.parent / "docs" / "claims.md"
BEGIN, END = "<!-- claims: .venv/bin/python -m benchmarks.report --write -->", "<!-- end of claims -->"
HEAD = (
    "| claim | ours | hand-written, once per request | the article | measure again | result |\n"
    "| --- | --- | --- | --- | --- | --- |"
)

CLAIMS = (
    *claims_of_storage.CLAIMS,
    *claims_of_sequences.CLAIMS,
    *claims_of_training.CLAIMS,
    *claims_of_serving.CLAIMS,
)

HEADLINES = (
    "a log like a real one of news",
    "bucket join of {t[sizes][rows]:,} rows with as many, histories",
    "ranking end to end, ",
    "ranking (DCAT), AUC against IID",
    "ranking over HTTP, L 512, 100 candidates",
)
"""Beginnings of the texts of the claims that stand in README.md too; the first claim that begins so."""


def headlines() -> list[Claim]:
    """The claims of HEADLINES, in that order."""
    return [next(claim for claim in CLAIMS if claim.text.startswith(start)) for start in HEADLINES]


def table(folder: Path = RESULTS, claims: Sequence[Claim] = CLAIMS) -> str:
    """The table of these claims, of those that were measured, as Markdown."""
    lines = [HEAD]
    lines += [line for claim in claims if (line := claim.line(folder)) is not None]
    return "\n".join(lines)


def with_table(document: Path, folder: Path = RESULTS) -> str:
    """The document, README or PAGE, with its table between its two marks. Raises ValueError if they are not there."""
    found = document.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(found):
        raise ValueError(
            f"{document.name}: the marks {BEGIN} and {END} required, found none; put them where the table belongs"
        )
    if document == README:
        text = table(folder, headlines())
    else:  # its links begin in docs/
        text = table(folder).replace("](benchmarks/", "](../benchmarks/").replace("](docs/", "](")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into README.md and docs/claims.md, between their marks")
    if parser.parse_args(argv).write:
        for document in (README, PAGE):
            document.write_text(with_table(document))
    else:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
