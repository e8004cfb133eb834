"""`reqdedup urls`: which parameters of URLs lead to another page is learned, applied and compared."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from reqdedup.cli.options import NUMBER, POSITIVE, SHARE, Group, Options, option, subcommand
from reqdedup.cli.output import ProgressLine, counted, interruptible, note, print_json, say

_column = option("--column", default="url", metavar="NAME", help="the column with the URLs (default: url)")
_max_rejects = option(
    "--max-rejects",
    type=SHARE,
    default=0.1,
    metavar="SHARE",
    help="of broken lines of JSON, left out with a warning, above which the command fails (default: 0.1)",
)
_json = option("--json", is_flag=True, help="print one JSON document instead of text")
_file = click.argument("file", type=click.Path(path_type=Path))


@subcommand(
    reports=False,
    help="learn rules from URLs and fingerprints of their pages",
    description="Find the parameters that change the page, for each host and set of parameter names, and write them "
    "to the rules file. If it is there, the new rules are refused when too many patterns lose a parameter, and its "
    "allowlists and regular expressions stay. FILE is Parquet, CSV, TSV or JSON Lines with a column of URLs, or a text "
    "with one a line.",
    examples=["reqdedup urls learn urls.csv --contents pages.parquet --rules miqps.json"],
)
@_file
@_column
@_max_rejects
@option("--rules", required=True, metavar="FILE", help="rules file to write")
@option("--contents", metavar="FILE", help="pages: a file with columns url and content_hash")
@option("--server", metavar="URL", help="pages: a server on this machine, whose answers are compared")
@option("--fingerprint", metavar="MODULE:FUNCTION", help="pages: a function of your own, from a URL to its page's hash")
@option("--threshold", type=NUMBER, metavar="SHARE", help="of changed pages, from which a parameter matters (0.2)")
@option("--samples", type=POSITIVE, metavar="N", help="tests per parameter, 5 at least (default: 20)")
@option("--max-flagged", type=SHARE, metavar="SHARE", help="patterns that may lose a parameter (default: 0.05)")
@option("--max-same", type=SHARE, metavar="SHARE", help="of a host's pages, that may look like one (default: 0.5)")
@_json
def learn(arguments: Options) -> int:
    """Learn, guard, write."""
    from reqdedup.logs.urls import BodyChecksum, LearnConfig, load_rules, publish
    from reqdedup.logs.urls import learn as learn_rules
    from reqdedup.logs.urls.guard import MAX_FLAGGED
    from reqdedup.logs.urls.miqps import Fingerprint
    from reqdedup.logs.urls.reading import named_fingerprint, read_contents, read_urls

    given = [name for name in ("contents", "server", "fingerprint") if getattr(arguments, name)]
    if len(given) != 1:
        raise click.UsageError("one of --contents, --server and --fingerprint required", click.get_current_context())
    options = {name: getattr(arguments, name) for name in ("threshold", "samples", "max_same")}
    config = LearnConfig(**{name: value for name, value in options.items() if value is not None})
    if not Path(arguments.rules).absolute().parent.is_dir():  # said before hours of looking at pages
        raise ValueError(f"{arguments.rules}: a folder that is there required, to write the rules to")
    old = load_rules(arguments.rules) if Path(arguments.rules).exists() else None
    fingerprint: Fingerprint
    if arguments.contents:
        fingerprint = read_contents(arguments.contents, max_rejects=arguments.max_rejects)
    elif arguments.server:
        fingerprint = BodyChecksum(arguments.server)
    else:
        sys.path.append(str(Path.cwd()))  # a module of the folder one is in, as for `python -m`
        fingerprint = named_fingerprint(arguments.fingerprint)
    looks = 0

    def progress(done: int, most: int) -> None:
        nonlocal looks
        looks = done
        told("looks at pages", done, most)

    def kept() -> str:
        state = "was not written" if old is None else "is as it was"
        lost = "1 look at pages is" if looks == 1 else f"{looks:,} looks at pages are"
        return f"nothing was kept: {arguments.rules} {state}, {lost} lost; run it again from the start"

    with ProgressLine() as told, interruptible(kept):
        learned = learn_rules(
            read_urls(arguments.file, arguments.column, max_rejects=arguments.max_rejects),
            fingerprint,
            config,
            layers=old,
            progress=progress,
        )
    if not learned.urls:
        raise ValueError(
            f"{arguments.file}: URLs of http or https required, found none among {learned.not_urls:,} texts; is it a "
            "text with one a line, or a table (.parquet, .csv, .tsv, .jsonl) with that --column?"
        )
    max_flagged = MAX_FLAGGED if arguments.max_flagged is None else arguments.max_flagged
    change = publish(learned.rules, arguments.rules, max_flagged=max_flagged, absent=learned.absent)
    rules = learned.rules
    answers = fingerprint.statuses if isinstance(fingerprint, BodyChecksum) else {}
    if arguments.json:
        counts = {
            name: getattr(learned, name)
            for name in (
                *("urls", "not_urls", "renders", "untested", "unstable"),
                *("alike", "alike_patterns", "walled", "absent"),
            )
        }
        counts |= {"answers": dict(answers)} if answers else {}
        said = {"rules": arguments.rules, "fingerprint": rules.fingerprint, "patterns": rules.num_patterns, **counts}
        print_json({**said, "noise": learned.noise, "change": change and asdict(change)})
        return 0
    say(
        f"{arguments.rules}: rules {rules.fingerprint} for {counted(rules.num_patterns, 'pattern')} of "
        f"{counted(len(rules.hosts), 'host')}, from {learned.urls:,} URLs and {learned.renders:,} looks at pages"
    )
    if learned.absent:
        say(f"{counted(len(learned.absent), 'host')} without URLs in this list keep their rules")
    if isinstance(fingerprint, BodyChecksum) and any(not 200 <= status < 300 for status in answers):
        say(f"the server answered {fingerprint.answers}; what is not 2xx says nothing of a page")
    if learned.untested:
        say(f"{learned.untested:,} parameters are kept because too few of their pages were known")
    if learned.not_urls:
        say(f"{learned.not_urls:,} texts are no URLs")
    for host in learned.unstable:
        say(f"{host}: {learned.noise[host]:.0%} of its pages differ from themselves; everything is kept there")
    for host in learned.alike:
        say(f"{host}: most of its pages look like one; everything is kept there, unless with a larger --max-same")
    for host, pattern in learned.alike_patterns[:5]:
        say(
            f"{host} ({', '.join(pattern)}): most of its pages look like one (a wall to log in?); it keeps what other "
            "patterns do not leave out, unless with a larger --max-same"
        )
    if len(learned.alike_patterns) > 5:
        say(f"and {len(learned.alike_patterns) - 5:,} patterns more")
    for host, pattern in learned.walled[:5]:
        say(
            f"{host} ({', '.join(pattern)}): most of its URLs show one page (a wall to log in before a path?); what "
            "changes the others is kept"
        )
    if len(learned.walled) > 5:
        say(f"and {len(learned.walled) - 5:,} patterns more")
    if change is not None:
        say(
            f"{len(change.flagged):,} of {change.compared:,} patterns lost a parameter; {change.added:,} are new, "
            f"{change.vanished:,} have gone"
        )
    return 0


@subcommand(
    reports=False,
    help="print the normal forms of URLs",
    description="Print the normal form of every URL of FILE, one a line, in its order; what is no URL as it is, its "
    "line feeds as \\n. Empty cells and lines stay empty.",
    examples=["reqdedup urls normalise urls.txt --rules miqps.json"],
)
@_file
@_column
@_max_rejects
@option("--rules", metavar="FILE", help="rules file; without one, every parameter is kept")
@_json
def normalise(arguments: Options) -> int:
    """Print them, and how many items they are."""
    from reqdedup.logs.urls import Normaliser, Rules
    from reqdedup.logs.urls.reading import read_urls, written

    normaliser = Normaliser.load(arguments.rules or Rules())
    urls = read_urls(arguments.file, arguments.column, empty=True, max_rejects=arguments.max_rejects)
    forms = [normaliser(url) if url else "" for url in urls]
    distinct, items = len({*urls} - {""}), len({*forms} - {""})
    if arguments.json:
        counts = {"urls": distinct, "items": items, "not_urls": normaliser.counts.not_urls}
        print_json({"rules": normaliser.rules.fingerprint, **counts, "normalised": forms}, is_masked=False)
        return 0
    click.echo("\n".join(written(form.replace("\r", "\\r").replace("\n", "\\n")) for form in forms))
    note(f"{distinct:,} distinct URLs are {items:,} items; {normaliser.counts.not_urls:,} lines are no URLs")
    return 0


@subcommand(
    reports=False,
    help="what other rules would make of URLs",
    description="Compare two rules files: patterns that lost a parameter, and which of the URLs of FILE become one "
    "item, or several.",
    examples=["reqdedup urls diff miqps.json new.json urls.txt"],
)
@click.argument("old")
@click.argument("new")
@_file
@_column
@_max_rejects
@_json
def diff(arguments: Options) -> int:
    """Print the changes, with examples."""
    from reqdedup.logs.urls import compare_rules, diff_urls, load_rules
    from reqdedup.logs.urls.reading import read_urls

    old, new = load_rules(arguments.old), load_rules(arguments.new)
    change = compare_rules(old, new)
    found = diff_urls(old, new, read_urls(arguments.file, arguments.column, max_rejects=arguments.max_rejects))
    if arguments.json:
        print_json({"patterns": asdict(change), "urls": asdict(found)}, is_masked=False)
        return 0
    say(
        f"{len(change.flagged):,} of {change.compared:,} patterns lost a parameter ({change.flagged_ratio:.1%}); "
        f"{change.added:,} are new, {change.vanished:,} have gone"
    )
    say(
        f"{found.changed:,} of {found.urls:,} URLs have another normal form: {found.old_items:,} items become "
        f"{found.new_items:,}, {found.merged:,} of them merged, {found.split:,} split"
    )
    for url, before, after in found.examples:
        say(f"{url}\n  {before}\n  {after}")
    return 0


COMMANDS = (
    Group(
        "urls",
        help="Where items are named by URLs, those that lead to one page are one item; the rules for it are learned.",
        short_help="learn which URLs are one item",
        commands={"learn": learn, "normalise": normalise, "diff": diff},
    ),
)
