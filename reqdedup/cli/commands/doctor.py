"""`reqdedup doctor`: what is installed, what answers, and what would not work and why."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reqdedup import __version__
from reqdedup.cli.catalog import lake_of
from reqdedup.cli.extras import NEEDED_FOR, libraries
from reqdedup.cli.options import Options, option, subcommand
from reqdedup.cli.output import counted, format_bytes, print_json, say
from reqdedup.cli.terminal import styled
from reqdedup.environment import CATALOG_PREFIX, DATA_DIR_VARIABLE, ENGINE_VARIABLE, variables
from reqdedup.masking import SECRET_NAMES, mask

if TYPE_CHECKING:
    from reqdedup.lake import Lake

OK, ABSENT, UNTESTED, FAILED = "ok", "absent", "untested", "failed"
_COLOURS = {OK: "green", ABSENT: "blue", UNTESTED: "yellow", FAILED: "red"}
_ROOM_BYTES = 10**9
"""Free in the folder for temporary files, below which larger writes are warned of."""


@dataclass(frozen=True)
class Check:
    """state: ok, absent (not there, and not needed for what is), untested (another version than was tested), failed.

    found: what is there, without credentials.  to_do: what would make it work, '' if it does.
    """

    name: str
    state: str
    found: str
    to_do: str = ""


@subcommand(
    help="what is installed, what answers, and what would not work",
    description="Versions against the bounds of this installation; the lake that is meant and who said so, whether its "
    "catalog and its files answer; the store of a server; cores, memory and GPUs. Nothing is changed, no credential is "
    "shown. Exit code 1 if something that is there, or was named, does not work.",
    examples=["reqdedup doctor", "reqdedup doctor --catalog prod --store valkey://127.0.0.1:6379 --json"],
)
@option("--store", metavar="FILE|URL", help="a store to ask: its file, or valkey://HOST (default: those of the lake)")
def doctor(arguments: Options) -> int:
    """Print the checks; those that failed come last, with what to do."""
    checks = [*_program(), *_libraries(), *_lake(arguments), *_machine(), *_gpu()]
    failed = [one for one in checks if one.state == FAILED]
    if arguments.json:
        print_json({"version": __version__, "ok": not failed, "checks": [asdict(one) for one in checks]})
        return 1 if failed else 0
    for one in checks:
        say(f"{one.state:<9} {one.name}: {one.found}")
        if one.to_do:
            say(f"  {one.to_do}")
    failing = ", ".join(one.name for one in failed)
    ending = f"does not work: {failing}" if failed else "everything that is there works"
    say(styled(ending, sys.stdout, fg=_COLOURS[FAILED if failed else OK], bold=True))
    return 1 if failed else 0


COMMANDS = (doctor,)


def _program() -> Iterator[Check]:
    where = Path(sys.modules["reqdedup"].__file__ or "").parent
    found = f"{__version__} in {where}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Check("reqdedup", OK, found)
    names = sorted(name for name in variables() if name.startswith((CATALOG_PREFIX, DATA_DIR_VARIABLE)))
    shown = [f"{name}={'***' if SECRET_NAMES.search(name) else mask(variables()[name])}" for name in names]
    yield Check("variables", OK, ", ".join(shown) or "no REQDEDUP_* is set")


def _libraries() -> Iterator[Check]:
    """One check per extra: all its libraries with their versions."""
    known = libraries()
    if not known:
        yield Check(
            "libraries", UNTESTED, "no metadata of an installation", "pip install reqdedup, or pip install -e ."
        )
        return
    for extra, purpose in NEEDED_FOR.items():
        mine = [one for one in known if one.extra == extra]
        if not mine:
            continue
        name = f"extra {extra} ({purpose})" if extra else f"libraries ({purpose})"
        missing = [one for one in mine if one.found is None]
        outside = [one for one in mine if one.found is not None and not one.is_within]
        there = ", ".join(f"{one.name} {one.found}" for one in mine if one.found is not None)
        package = f"reqdedup[{extra}]" if extra else "reqdedup"
        if missing:
            state = ABSENT if extra else FAILED
            without = f"without {', '.join(one.name for one in missing)}"
            yield Check(name, state, f"{there} {without}".strip(), f"pip install '{package}'")
        elif outside:
            wanted = ", ".join(f"{one.name} {one.required}" for one in outside)
            yield Check(name, UNTESTED, there, f"{wanted} is what was tested: pip install '{package}'")
        else:
            yield Check(name, OK, there)


def _lake(arguments: Options) -> Iterator[Check]:
    try:
        lake = lake_of(arguments)
    except (ValueError, OSError) as error:
        yield Check("catalog", FAILED, mask(str(error)))
        return
    place = lake.place
    named = f"{place.options}, named by {place.said_by}"
    database = place.database
    if database is not None and not database.exists() and place.said_by == "the default":
        yield Check("catalog", ABSENT, f"none yet at {database}", "`reqdedup ingest` or `reqdedup convert` makes it")
    else:
        yield from _catalog(lake, named)
    yield from _stores(arguments, lake)


def _catalog(lake: Lake, named: str) -> Iterator[Check]:
    try:
        catalog = lake.catalog
        tables = [table for space in catalog.list_namespaces() for table in catalog.list_tables(space)]
    except Exception as error:  # whatever its driver raises: that is what is asked
        yield Check("catalog", FAILED, f"{named}: {mask(str(error))}", "start it, or name another (docs/library.md)")
        return
    yield Check("catalog", OK, f"{named}: answers, {counted(len(tables), 'table')}")
    if not tables:
        return
    name = ".".join(tables[0])
    try:
        location = mask(catalog.load_table(tables[0]).location())
    except Exception as error:
        text = f"the metadata of {name} cannot be read: {mask(str(error))}"
        yield Check(
            "files", FAILED, text, "check the endpoint, the keys and the region of the store (docs/catalogs.md)"
        )
        return
    yield Check("files", OK, f"{location} is read{_room(location)}")


def _room(location: str) -> str:
    path = Path(location.removeprefix("file://"))
    if "://" in str(location).removeprefix("file://") or not path.is_dir():
        return ""
    writable = "" if os.access(path, os.W_OK) else ", and cannot be written"
    return f"{writable}, {format_bytes(shutil.disk_usage(path).free)} free"


def _stores(arguments: Options, lake: Lake) -> Iterator[Check]:
    """The store that was named, or the files of those that `reqdedup store fill` makes in an embedded lake."""
    folder = lake.place.data_dir and lake.place.data_dir / "stores"
    places = [arguments.store] if arguments.store else sorted(map(str, folder.glob("*.sqlite"))) if folder else []
    if not places:
        yield Check("store", ABSENT, "none in the lake", "`reqdedup store fill` makes one, --store names another")
    for place in places:
        if "://" not in place and not Path(place).is_file():
            yield Check("store", FAILED, f"{place}: no file", "`reqdedup store fill` makes it")
            continue
        try:
            counts = _counts(place)
        except ModuleNotFoundError as error:
            yield Check("store", FAILED, f"{mask(place)}: no module {error.name}", "see the extras above")
        except Exception as error:
            yield Check("store", FAILED, f"{mask(place)}: {mask(str(error))}", "start it, or name another with --store")
        else:
            held = f", {counted(counts['users'], 'user')}" if "users" in counts else ""
            yield Check("store", OK, f"{mask(place)} answers{held}")


def _counts(place: str) -> dict[str, Any]:
    """What a store says that it holds, as far as it counts. Raises what its driver raises."""
    if "://" not in place:
        from reqdedup.sequences.sqlite_store import SqliteStore

        file = SqliteStore(place)
        found: dict[str, Any] = dict(file.counts())
        file.close()
        return found
    from reqdedup.serving.server.loading import open_store

    server = open_store(place)
    found = {"columns": len(server.columns)}
    server.close()
    return found


def _machine() -> Iterator[Check]:
    from reqdedup.distributed.engine import named_engine, num_cores

    cores = num_cores()
    try:
        memory = f", {format_bytes(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))} of memory"
    except (AttributeError, ValueError, OSError):
        memory = ""
    named = variables().get(ENGINE_VARIABLE, "")
    try:
        engine = f"{named_engine(named).name} ({ENGINE_VARIABLE})" if named else "inline; for a large job, all cores"
        yield Check("engine", OK, f"{engine}; {counted(cores, 'core')}{memory}")
    except ValueError as error:
        yield Check("engine", FAILED, str(error), f"set {ENGINE_VARIABLE} to one of these")
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    state, to_do = (OK, "") if free > _ROOM_BYTES else (UNTESTED, "name another folder with --spill-dir, or TMPDIR")
    yield Check("temporary files", state, f"{folder}, {format_bytes(free)} free", to_do)


def _gpu() -> Iterator[Check]:
    if find_spec("torch") is None:
        yield Check("GPU", ABSENT, "torch is not installed", "pip install 'reqdedup[train]'")
        return
    import torch

    try:
        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    except Exception as error:  # a driver that is too old, say
        yield Check("GPU", FAILED, str(error), "update the driver, or install a torch that fits it")
        return
    if devices:
        named = ", ".join(f"{one.name} ({format_bytes(one.total_memory)})" for one in devices)
        kernels = "Triton kernels" if find_spec("triton") else "no triton, plain kernels"
        yield Check("GPU", OK, f"{named}, CUDA {torch.version.cuda}, {kernels}")
        return
    has_driver = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    if has_driver and torch.version.cuda is None:
        to_do = "there is a driver: install a torch build with CUDA (pytorch.org)"
        yield Check("GPU", FAILED, f"torch {torch.__version__} was built without CUDA", to_do)
    elif has_driver:
        yield Check("GPU", ABSENT, f"torch {torch.__version__} with CUDA {torch.version.cuda} sees no device")
    else:
        yield Check("GPU", ABSENT, f"no NVIDIA driver; torch {torch.__version__} computes on the CPU")
