"""`reqdedup completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click

from reqdedup.cli.options import OneOf, Options, subcommand

SHELLS = ("bash", "zsh", "fish")


@subcommand(
    help="commands and options completed by bash, zsh or fish",
    description="Print the script that a shell reads at its start. It asks the program, so that it is never out of "
    "date. The examples add it to the shell's own files.",
    examples=[
        "reqdedup completion bash >> ~/.bashrc",
        "reqdedup completion zsh >> ~/.zshrc",
        "reqdedup completion fish > ~/.config/fish/completions/reqdedup.fish",
    ],
    reports=False,
)
@click.argument("shell", type=OneOf(SHELLS), metavar="bash|zsh|fish")
def completion(arguments: Options) -> int:
    """Print the script of the shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(arguments.shell)
    assert kind is not None
    program = click.get_current_context().find_root().command
    print(kind(program, {}, "reqdedup", "_REQDEDUP_COMPLETE").source())
    return 0


COMMANDS = (completion,)
