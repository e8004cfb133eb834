"""`reqdedup export`: the bundle of a training run, for a server."""

from __future__ import annotations

import click

from reqdedup.cli.catalog import lake_of
from reqdedup.cli.options import Options, option, subcommand
from reqdedup.cli.output import print_json, say


@subcommand(
    help="the bundle of a training run: a folder that a server loads",
    description="RUN_DIR is the out_dir of a training run, finished or stopped: its checkpoint, and run.json with the "
    "files of its table. OUT becomes the bundle, or is replaced if it is one; s3://... uploads it. Training writes the "
    "same as RUN_DIR/bundle when it ends.",
    examples=["reqdedup export warehouse/data/models/laptop/ranking_model bundles/ranking"],
)
@click.argument("run_dir", metavar="RUN_DIR")
@click.argument("out", metavar="OUT")
@option("--int8-tables", is_flag=True, help="tables of items and events in a quarter of their bytes, rounded")
def export(arguments: Options) -> int:
    """Write the bundle and say what it is."""
    import tempfile
    from pathlib import Path

    from reqdedup.models import Bundle
    from reqdedup.serving.bundles.places import add_index, upload
    from reqdedup.storage.iceberg.paths import local_path
    from reqdedup.training import export_run
    from reqdedup.training.loop import source_of_run

    local = local_path(arguments.out)
    with tempfile.TemporaryDirectory(prefix="reqdedup-export-") as folder:
        place = Path(folder) / "bundle" if local is None else local
        written = export_run(arguments.run_dir, place, int8_tables=arguments.int8_tables)
        add_index(written, source_of_run(arguments.run_dir))
        bundle = Bundle.load(written)
        if local is None:
            upload(written, arguments.out, properties=lake_of(arguments).place.properties)
    found = {
        "bundle": arguments.out,
        "task": bundle.task,
        "fingerprint": bundle.fingerprint,
        "snapshot_id": bundle.signature.snapshot_id,
        "items": len(bundle.items),
        "inputs": [column.name for column in bundle.transforms.columns],
        "outputs": list(bundle.signature.outputs),
    }
    if arguments.json:
        print_json(found)
    else:
        say(
            f"{arguments.out}: {bundle.task}, {len(bundle.items):,} items, reads {', '.join(found['inputs'])}, "
            f"gives {', '.join(found['outputs'])}, fingerprint {bundle.fingerprint}"
        )
    return 0


COMMANDS = (export,)
