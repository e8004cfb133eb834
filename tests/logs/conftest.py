from dataclasses import dataclass

import pyarrow as pa
import pytest

from reqdedup.dedup.encoding import check_deduplicated, expand_to_lists
from reqdedup.logs import LogReader, read_log


@dataclass
class Reading:
    """A finished reading with fat rows as dictionaries, for comparison with what a test expects."""

    reader: LogReader
    rows: list[dict]
    rejects: list[dict]

    @property
    def reasons(self) -> list[tuple[str, int]]:
        return [(reject["reason"], reject["line"]) for reject in self.rejects]


@pytest.fixture
def read():
    def read_all(path, **options) -> Reading:
        reader = read_log(path, **{"max_rejects": 1, **options})
        fat = []
        for batch in reader:
            check_deduplicated(batch, reader.schema)
            for column in reader.schema.blobs:
                array = batch.column(column.name)
                assert set(array.indices.to_pylist()) == set(range(len(array.dictionary)))
            fat.append(expand_to_lists(batch, reader.schema))
        rows = pa.Table.from_batches(fat).to_pylist() if fat else []
        assert reader.counts.rows == len(rows)
        assert reader.counts.requests == len({row["request_id"] for row in rows})
        assert reader.counts.users == len({row["user_id"] for row in rows})
        assert sum(reader.counts.rejected.values()) == reader.rejects.num_rows
        return Reading(reader, rows, reader.rejects.to_pylist())

    return read_all
