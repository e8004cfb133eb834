"""What MkDocs does not do by itself for this site.

- README.md is its first page, CHANGELOG.md its last: they stand once in the repository, their links are made to fit.
- The decisions are listed by their titles, and a guide that mkdocs.yml does not name stands under Guides all the same.
- Links to files outside docs/ become their path: the site is built without knowing where the repository is published.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Class, Extension, Function, Module, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
"""Pages that are files of the repository's root."""

LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
FIELD = re.compile(r"(?:^|(?<=\S)  )(\*?\w+(?:, \*?\w+)*): (?=\S)", re.MULTILINE)


def title_of(path: Path) -> str:
    return path.read_text().split("\n", 1)[0].removeprefix("# ")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    docs = Path(config.docs_dir)
    sections: dict[str, Any] = {name: entries for section in config.nav or [] for name, entries in section.items()}
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    sections["Guides"] += [path.name for path in sorted(docs.glob("*.md")) if path.name not in named]
    decisions = [f"decisions/{path.name}" for path in sorted((docs / "decisions").glob("*.md"))]
    sections["Decisions"] += ["decisions/index.md", *decisions]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for page, source in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    decisions = sorted((Path(config.docs_dir) / "decisions").glob("*.md"))
    lines = [f"- [{title_of(path)}]({path.name})" for path in decisions]
    text = "# Decisions\n\nOne page each: what, why, what was measured.\n\n" + "\n".join(lines) + "\n"
    files.append(File.generated(config, "decisions/index.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    folder = "" if here in FROM_ROOT else posixpath.dirname(f"docs/{here}")  # of the file in the repository

    def inside(found: re.Match[str]) -> str:
        text, target, anchor = found.group(1), found.group(2), found.group(3) or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        for name, source in FROM_ROOT.items():
            path = f"docs/{name}" if path == source else path
        if path.startswith("docs/") and files.get_file_from_path(path.removeprefix("docs/")):
            start = posixpath.dirname(f"docs/{here}")
            return f"[{text}]({posixpath.relpath(path, start)}{anchor})"
        if (ROOT / path).exists():
            return f"`{path}`" if text.strip("`") in (path, target) else f"{text} (`{path}`)"
        return found.group()  # MkDocs says what is wrong with it

    fences = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(inside, part) for part in fences)


class FieldLists(Extension):
    """Docstrings name parameters as `name: what it is`, one a line; on a page each is an item of a list."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if isinstance(obj, Module | Class | Function) and obj.docstring:
            obj.docstring.value = FIELD.sub(r"\n- `\1`: ", obj.docstring.value)
