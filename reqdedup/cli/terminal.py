"""How wide and how colourful a stream is, and shell commands that fit it (`display.fit` does it for sentences).

A terminal has its own width, and COLUMNS sets one for everything else; without either nothing is wrapped, so that a
file or a pipe gets one line per line. Colour is for terminals alone, and never with NO_COLOR or TERM=dumb.
"""

from __future__ import annotations

import os
import re
from typing import Any, TextIO

import click

from reqdedup.environment import variables

NARROWEST = 20


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and variables().get("TERM") != "dumb"


def width(stream: TextIO) -> int | None:
    """Columns that a line of this stream has; None if it is neither a terminal nor told by COLUMNS."""
    said = variables().get("COLUMNS", "")
    if said.isdigit() and int(said):
        return max(int(said), NARROWEST)
    if not stream.isatty():
        return None
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        found = 0
    return max(found or 80, NARROWEST)  # a terminal that does not know says 0


def styled(text: str, stream: TextIO, **style: Any) -> str:
    """The text in a colour, if the stream shows colours."""
    return click.style(text, **style) if is_terminal(stream) and not variables().get("NO_COLOR") else text


def command_lines(command: str, columns: int, indent: str = "  ") -> list[str]:
    """A shell command on as many lines as it needs, each but the last ended by a backslash."""
    words = [word for word in re.split(r" (?=(?:[^']*'[^']*')*[^']*$)", re.sub(r"\\\n\s*", "", command)) if word]
    lines = [indent + words[0]]
    for before, word, after in zip(words, words[1:], [*words[2:], "-"]):
        value = 0 if after.startswith("-") or not word.startswith("-") else 1 + len(after)
        is_value = before.startswith("-") and not word.startswith("-")
        if len(lines[-1]) + 1 + len(word) + value + 2 > columns and not is_value:
            lines[-1] += " \\"
            lines.append(f"{indent}    {word}")
        else:
            lines[-1] += f" {word}"
    return lines
