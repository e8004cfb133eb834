"""Page headers read from bytes, against what the footer says of the same chunk."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.audit.pages import chunk_range, read_pages


def written(table: pa.Table, **options: object) -> tuple[io.BytesIO, pq.FileMetaData]:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink, pq.read_metadata(io.BytesIO(sink.getvalue()))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_pages_add_up_to_their_column_chunk(version, codec, dictionary):
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "list": pa.array([rng.integers(0, 2**40, size).tolist() for size in rng.integers(0, 300, 400)]),
            "text": pa.array(["long " * 2000, None] * 200),
            "number": rng.random(400),
        }
    )
    file, footer = written(
        table, compression=codec, data_page_version=version, use_dictionary=dictionary, data_page_size=4096
    )
    for index in range(footer.num_row_groups):
        for position in range(footer.num_columns):
            chunk = footer.row_group(index).column(position)
            pages = read_pages(file, *chunk_range(chunk))
            assert sum(page.compressed_bytes for page in pages) == chunk.total_compressed_size
            assert sum(page.num_values for page in pages if not page.is_dictionary) == chunk.num_values
            assert any(page.is_dictionary for page in pages) == dictionary
            assert {page.encoding for page in pages if not page.is_dictionary} <= set(chunk.encodings)
            headers = chunk.total_uncompressed_size - sum(page.uncompressed_bytes for page in pages)
            assert 0 < headers < 200 * len(pages) + 20_000  # statistics of long text lie in page headers


def test_a_page_size_asked_for_is_the_page_size_found():
    file, footer = written(
        pa.table({"x": np.random.default_rng(0).random(100_000)}), use_dictionary=False, data_page_size=2**16
    )
    pages = read_pages(file, *chunk_range(footer.row_group(0).column(0)))
    assert len(pages) > 5
    assert all(2**16 <= page.uncompressed_bytes < 2**16 + 2**14 for page in pages[:-1])


def test_a_limit_reads_only_the_first_pages():
    file, footer = written(pa.table({"x": np.arange(100_000)}), use_dictionary=False, data_page_size=2**14)
    assert len(read_pages(file, *chunk_range(footer.row_group(0).column(0)), limit=3)) == 3


@pytest.mark.parametrize("garbage", [b"\xff" * 64, b"\x00" * 64, b"", b"\x15"])
def test_bytes_that_are_no_page_are_refused(garbage):
    with pytest.raises(ValueError, match="page"):
        read_pages(io.BytesIO(garbage), 0, 64)
