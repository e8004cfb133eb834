"""Do the tests pass with versions newer than the pinned ones? `python -m tests.next_versions [LIBRARY ...]`, or make check-next.

For each library two versions are tried, if the registry has them: the newest that pyproject.toml allows, and the newest of
the next minor series after the pin in constraints.txt. Each gets an environment of its own under build/next/, laid over the
one that runs this: pip installs there only what the version needs otherwise. Then the tests of what rests on the library
run in it, and a table says how they went. Evidence for widening a bound or moving a pin; no part of CI, since the registry
decides what it finds. Exit code 1 if a version that pyproject.toml allows fails. A newer torch may bring gigabytes of CUDA:
set PIP_INDEX_URL to an index of CPU builds, or name the other libraries.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / "build" / "next"
STORAGE = ("tests/storage", "tests/dedup", "tests/convert")
TESTS = {
    "pyiceberg": STORAGE,
    "pyarrow": STORAGE,
    "duckdb": STORAGE,
    "polars": STORAGE,
    "dagster": ("tests/pipelines",),
    "torch": ("tests/ops", "tests/models", "tests/training"),
}
WITH = {"dagster": ("dagster-webserver", "dagster-dg-cli")}
"""Packages that are released with a library, to be taken of the same day."""
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Candidate:
    """A version to try.  allowed: by pyproject.toml."""

    requirement: Requirement
    version: Version
    allowed: bool


def requirements() -> dict[str, Requirement]:
    """What pyproject.toml says of each library of `TESTS`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {found.name: found for found in map(Requirement, lines) if found.name in TESTS}


def pinned(library: str) -> Version:
    """The version in constraints.txt; for one without a pin there (torch) the installed one."""
    found = re.search(rf"^{library}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return Version(found.group(1) if found else version(library).partition("+")[0])


def released(library: str) -> list[Version]:
    """Final releases that the registry has for this Python, the newest first."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", library],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in asked.stdout.splitlines() if line.startswith("Available versions: ")]
    found = [Version(one) for one in line.partition(": ")[2].split(", ")]
    return sorted({one for one in found if not (one.is_prerelease or one.local)}, reverse=True)


def candidates(requirement: Requirement, pin: Version, releases: list[Version]) -> list[Candidate]:
    """The newest allowed version and the newest of the next minor series, if they are newer than the pin."""
    newer = sorted((one for one in releases if one > pin), reverse=True)
    allowed = [one for one in newer if one in requirement.specifier]
    later_minors = [one for one in newer if one.release[:2] > pin.release[:2]]
    next_minor = [one for one in later_minors if one.release[:2] == later_minors[-1].release[:2]]
    chosen = dict.fromkeys([*allowed[:1], *next_minor[:1]])
    return [Candidate(requirement, one, one in requirement.specifier) for one in chosen]


def environment(candidate: Candidate, log: Path) -> Path:
    """The Python of a new environment over this one, with the candidate installed in it."""
    folder = log.with_suffix("")
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    python = folder / "bin" / "python"
    over = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    below = sysconfig.get_path("purelib")  # as a site folder, so that its own .pth files count: reqdedup is one of them
    (Path(over) / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    extras = f"[{','.join(sorted(candidate.requirement.extras))}]" if candidate.requirement.extras else ""
    wanted = [f"{candidate.requirement.name}{extras}=={candidate.version}", *WITH.get(candidate.requirement.name, ())]
    upgrade = ["--upgrade"] if len(wanted) > 1 else []
    with log.open("w") as file:
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", *upgrade, *wanted]
        subprocess.run(pip, check=True, stdout=file, stderr=subprocess.STDOUT, timeout=TIMEOUT_S)
    return python


def outcome(candidate: Candidate, tests: list[str]) -> tuple[bool, str]:
    """Whether the tests pass with this version, and what pytest, or pip, says last."""
    log = ENVIRONMENTS / f"{candidate.requirement.name}-{candidate.version}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        python = environment(candidate, log)
        with log.open("a") as file:
            command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "-m", "not (soak or servers)", *tests]
            done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=TIMEOUT_S)
    except subprocess.SubprocessError as error:
        return False, f"{type(error).__name__}; {log.relative_to(ROOT)}"
    said = [line for line in log.read_text().splitlines() if re.search(r"\d (passed|failed|error)", line)]
    summary = said[-1].strip("= ") if said else f"exit code {done.returncode}"
    return done.returncode == 0, summary if done.returncode == 0 else f"{summary}; {log.relative_to(ROOT)}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.next_versions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(TESTS)}; default: all")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="run these instead of the library's own")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.libraries) - set(TESTS))
    if unknown:
        parser.error(f"libraries of {', '.join(TESTS)} required, found {', '.join(unknown)}")
    found, ok = requirements(), True
    print(
        "| library | pinned | allowed | tried | result | minutes |\n| --- | --- | --- | --- | --- | --- |", flush=True
    )
    for library in arguments.libraries or TESTS:
        pin, allowed = pinned(library), str(found[library].specifier)
        tried = candidates(found[library], pin, released(library))
        if not tried:
            print(f"| {library} | {pin} | {allowed} | | the pinned one is the newest | |", flush=True)
        for candidate in tried:
            start = time.monotonic()
            passed, said = outcome(candidate, arguments.tests or list(TESTS[library]))
            ok &= passed or not candidate.allowed
            shown = f"{candidate.version}{'' if candidate.allowed else ' (not allowed)'}"
            result = f"{'passes' if passed else 'FAILS'}: {said}"
            minutes = (time.monotonic() - start) / 60
            print(f"| {library} | {pin} | {allowed} | {shown} | {result} | {minutes:.1f} |", flush=True)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
