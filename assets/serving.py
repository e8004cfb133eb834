"""Stage 7: both models as bundles that a server loads."""

import dagster as dg

from assets.metadata import GLANCE
from assets.pictures import facts
from assets.resources import Warehouse
from assets.stages import MODEL, SERVING, stage
from assets.training import MODELS, check_one_sample
from reqdedup.display import format_bytes
from reqdedup.models import Bundle
from reqdedup.serving.bundles.places import add_index, find_bundles, publish
from reqdedup.storage import TableSource
from reqdedup.training.loop import BUNDLE_NAME


@stage(**SERVING, deps=list(MODELS), tags=MODEL, kinds={"torch"})
def serving_bundle(store: Warehouse) -> dg.MaterializeResult:
    """Both models as folders that a server loads: weights, signature, vocabulary, item vectors; nothing pickled.

    They are published as one version at once, and the version before is kept. Look at: the checks, which say that a
    bundle answers with the bits of the trained model, and how long a request takes.
    """
    folders = {name: store.model_dir(name) for name in MODELS}
    check_one_sample(folders, store.table("training_sample"))
    made = [folder / BUNDLE_NAME for folder in folders.values()]
    sample = TableSource(store.table("training_sample"))
    indexed = [add_index(folder, sample) for folder in made]
    place = store.serving_dir() / "bundle"
    version = publish(place, made)
    bundles = [Bundle.load(folder) for folder in find_bundles(place)]
    glance = facts(
        models=", ".join(bundle.task for bundle in bundles),
        items=f"{len(bundles[0].items):,}",
        stored=format_bytes(sum(path.stat().st_size for path in (place / version).rglob("*") if path.is_file())),
        version=version,
    )
    return store.result(
        **{GLANCE: glance},
        place=str(place),
        version=version,
        items=len(bundles[0].items),
        has_index=any(indexed),
        **{f"{bundle.task}_fingerprint": bundle.fingerprint for bundle in bundles},
    )
