"""Features computed into a table of a catalog by its name: added to what is there, or anew in another form.

Another form is other features, another bucket count, or keys instead of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table
from pyiceberg.table.update import TableUpdate

from reqdedup.schema import Column
from reqdedup.storage.features.backfill import Backfill, FeatureReport, add_request_feature
from reqdedup.storage.features.values import Compute
from reqdedup.storage.iceberg.form import updates_to
from reqdedup.storage.iceberg.layout import make_table
from reqdedup.storage.read.feature_table import (
    check_feature_form,
    feature_differences,
    feature_form,
    own_properties,
)
from reqdedup.storage.tasks.replace import gone_if_failed


def replace_feature_table(
    catalog: Catalog,
    identifier: str,
    main_table: Table,
    feature_columns: Sequence[Column],
    compute: Compute,
    *,
    by_position: bool = False,
    inputs: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureReport:
    """Compute these features for all requests of `main_table` into the table `identifier`, whatever form it had.

    Form and values change in one commit. An existing table that has these features in the form that `main_table` asks
    for keeps its other features. Parameters and errors are those of `create_feature_table` and `add_request_feature`.
    """
    form, made = feature_form(main_table, feature_columns, by_position=by_position), None
    try:
        side_table = catalog.load_table(identifier)
    except NoSuchTableError:
        side_table = made = make_table(catalog, identifier, form)
    updates: tuple[TableUpdate, ...] = ()
    if feature_differences(side_table, main_table, feature_columns, by_position=by_position):
        updates = updates_to(side_table, form, own_properties(side_table))
    with gone_if_failed(catalog, made):
        backfill = Backfill(main_table, side_table, compute, inputs=inputs, columns=feature_columns, updates=updates)
        return backfill.run(progress=progress)


def compute_features(
    catalog: Catalog,
    identifier: str,
    main_table: Table,
    feature_columns: Sequence[Column],
    compute: Compute,
    *,
    by_position: bool = False,
    **options: Any,
) -> FeatureReport:
    """Compute these features of `main_table`'s requests into the table `identifier`, which is made if it is not there.

    Its other features keep their values.  options: of `add_request_feature`. Raises ValueError if the table has another
    form, or one of the features in another form; ConflictError if another writer was faster. Then nothing changed.
    """
    form, made = feature_form(main_table, feature_columns, by_position=by_position), None
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        table = made = make_table(catalog, identifier, form)
    check_feature_form(table, main_table, (), by_position=by_position)
    with gone_if_failed(catalog, made):
        return add_request_feature(main_table, table, compute, columns=feature_columns, **options)
