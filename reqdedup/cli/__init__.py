"""The command `reqdedup`: one module per group of subcommands.

    commands/    the subcommands, one module per group; a new module is found by itself
    command      the whole command line, and what becomes of an error
    catalog      which lake and tables are meant
    options      what a subcommand is made of
    values       texts as values: strict and bounded
    output       text, JSON and progress
    terminal     width and colour
    extras       libraries that are there, and those that are not
    reference    docs/cli.md, from the program

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 a check that failed or a
defect, 2 something the caller can put right (the message says what), 130 interrupted. Everything heavy is imported
inside the functions that run a subcommand, so that `--help` answers at once. What deletes for good looks only, until it
is told `--apply`; everything else leaves the version before it readable and acts at once.
"""

from reqdedup.cli.command import build_program, main

__all__ = ["build_program", "main"]
