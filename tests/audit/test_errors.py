"""What the audit refuses, and what it takes in its stride: one clear sentence each, the file named, nothing half-said."""

from __future__ import annotations

import base64
import errno
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from pyiceberg.types import LongType

from reqdedup import cli
from reqdedup.audit import audit_table, render
from reqdedup.storage import open_catalog
from tests.audit.audit_tables import KEYS, append_all, impressions, local_catalog, shuffled, write_folder


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return impressions(num_users=12, history=20, fan_out=6)


@pytest.fixture
def folder(rows, tmp_path):
    return write_folder(tmp_path / "t", rows)


def test_a_missing_key_column_names_those_that_are_there(folder):
    with pytest.raises(ValueError, match=r"key column request_id required, found columns member, session, ts"):
        audit_table(folder, request_key="request_id")


def test_no_request_key_is_refused(folder):
    with pytest.raises(ValueError, match="at least one request key column required"):
        audit_table(folder, request_key=())


@pytest.mark.parametrize("key", ["price", "embedding", "history.item"])
def test_a_key_must_be_of_a_type_that_identifies(folder, key):
    with pytest.raises(ValueError, match=f"key column {key}: a key must be of integers, strings"):
        audit_table(folder, request_key=key)


def test_a_key_may_be_in_the_names_of_folders(rows, tmp_path):
    write_folder(tmp_path / "t" / "day=1", rows)
    assert audit_table(tmp_path / "t", request_key="day").requests.requests == 1


def test_a_folder_without_parquet_files_is_refused(tmp_path):
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / ".hidden.parquet").write_text("x")
    with pytest.raises(
        ValueError, match=r"at least one Parquet file \(.parquet, .parq, .pq\) required, found 3 other entries"
    ):
        audit_table(tmp_path, **KEYS)
    with pytest.raises(ValueError, match="found nothing there"):
        audit_table(tmp_path / "nowhere", **KEYS)
    with pytest.raises(ValueError, match="found an empty list"):
        audit_table([], **KEYS)


def test_files_of_different_types_are_refused_by_name(rows, folder):
    other = rows.set_column(rows.schema.names.index("country"), "country", pa.array(np.zeros(len(rows))))
    pq.write_table(other, folder / "zzz.parquet")
    with pytest.raises(
        ValueError, match=r"found country as string in .*part-000.parquet and as double in .*zzz.parquet"
    ):
        audit_table(folder, **KEYS)


@pytest.mark.slow
def test_wider_numbers_and_missing_columns_are_taken_in(rows, folder):
    index = rows.schema.names.index("item")
    narrow = rows.set_column(index, "item", rows["item"].cast(pa.int32())).drop_columns(["price"])
    pq.write_table(narrow, folder / "zzz.parquet")
    report = audit_table(folder, **KEYS)
    assert report.table.rows == 2 * len(rows)
    assert {column.name: column.type for column in report.columns}["item"] == "int64"
    assert "columns that some files do not have count as null there: price" in report.notes


def test_what_the_audit_itself_runs_out_of_is_not_called_a_damaged_file(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("reqdedup.audit.values.ValueStore.add", full)
    with pytest.raises(OSError, match="No space left on device"):
        audit_table(folder, **KEYS)


def test_a_truncated_file_is_named(folder):
    path = folder / "part-001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"part-001.parquet: a readable Parquet file required, found a damaged one"):
        audit_table(folder, **KEYS)


def test_damaged_pages_are_named(rows, tmp_path):
    folder = write_folder(tmp_path / "t", rows, compression="zstd", use_dictionary=False, files=1)
    path = folder / "part-000.parquet"
    footer = pq.read_metadata(path)
    chunk = footer.row_group(0).column(footer.schema.names.index("item") if "item" in footer.schema.names else 5)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + 30 : chunk.data_page_offset + chunk.total_compressed_size] = b"\xee" * (
        chunk.total_compressed_size - 30
    )
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"part-000.parquet: a readable Parquet file required"):
        audit_table(folder, **KEYS)


class Vault(pe.KmsClient):
    """Keys that are only encoded, which is enough to encrypt a test file."""

    def __init__(self, config):
        super().__init__()

    def wrap_key(self, key_bytes, master_key_identifier):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, master_key_identifier):
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_an_encrypted_file_is_named(rows, tmp_path, plaintext_footer):
    folder = write_folder(tmp_path / "t", rows, files=1)
    factory = pe.CryptoFactory(Vault)
    config = pe.EncryptionConfiguration(
        "footer", column_keys={"key": rows.schema.names[:2]}, plaintext_footer=plaintext_footer
    )
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(folder / "secret.parquet", rows.schema, encryption_properties=properties) as writer:
        writer.write_table(rows)
    with pytest.raises(
        ValueError, match=r"secret.parquet: an unencrypted Parquet file required, found an encrypted one"
    ):
        audit_table(folder, **KEYS)


def test_empty_tables_are_refused(rows, tmp_path):
    folder = write_folder(tmp_path / "t", rows.slice(0, 0), files=1)
    with pytest.raises(ValueError, match="a table with rows required, found 1 file without any"):
        audit_table(folder, **KEYS)
    catalog = local_catalog(tmp_path)
    catalog.create_namespace("a")
    with pytest.raises(ValueError, match=r"a\.t: a table with rows required, found no snapshot"):
        audit_table(catalog.create_table("a.t", rows.schema), **KEYS)


@pytest.mark.slow
def test_rows_without_a_key_are_counted_and_left_out(rows, tmp_path):
    mask = np.arange(len(rows)) % 10 == 0
    index = rows.schema.names.index("session")
    nulls = rows.set_column(index, "session", pa.array(rows["session"].to_numpy(), mask=mask))
    report = audit_table(write_folder(tmp_path / "t", nulls), **KEYS)
    assert report.table.rows_without_key == mask.sum()
    assert report.table.rows == len(rows)
    assert report.sample.rows == len(rows) - mask.sum()
    assert any("rows have a null in a key" in note for note in report.notes)
    index = rows.schema.names.index("member")
    without = rows.set_column(index, "member", pa.nulls(len(rows), pa.string()))
    with pytest.raises(ValueError, match=r"found \d+ rows and a null in member or session of each"):
        audit_table(write_folder(tmp_path / "n", without), **KEYS)


def test_a_sample_that_must_read_too_much_is_refused_with_the_figure(rows, tmp_path):
    many = shuffled(impressions(num_users=120, history=20, fan_out=6))
    folder = write_folder(tmp_path / "t", many, row_group_size=50)
    with pytest.raises(ValueError, match=r"reads about .* GB, because their rows lie in \d+% of \d+ row groups"):
        audit_table(folder, **KEYS, sample_bytes=2**14, read_bytes=1)


@pytest.mark.slow
def test_nested_columns_are_left_as_they_are_and_said(rows, tmp_path):
    nested = rows.append_column("deep", pa.array([[[1, 2], [3]]] * len(rows))).append_column(
        "tags", pa.array([[("a", 1)]] * len(rows), pa.map_(pa.string(), pa.int32()))
    )
    plain, deep = (
        audit_table(write_folder(tmp_path / name, table), **KEYS) for name, table in (("p", rows), ("d", nested))
    )
    assert {column.name for column in deep.columns} - {column.name for column in plain.columns} == {
        "deep",
        "tags.key",
        "tags.value",
    }
    extra = deep.table.compressed_bytes - plain.table.compressed_bytes
    assert deep.layout("BY_REQUEST").bytes == pytest.approx(plain.layout("BY_REQUEST").bytes + extra)
    assert "nested deeper than one list, taken to stay as they are: deep, tags.key, tags.value" in deep.notes


@pytest.mark.slow
def test_a_column_renamed_since_a_file_was_written_is_found(rows, tmp_path):
    table = append_all(local_catalog(tmp_path), "a.t", rows)
    before = audit_table(table, **KEYS)
    with table.update_schema() as update:
        update.rename_column("member", "person")
        update.add_column("later", LongType())
    report = audit_table(table, request_key="session", user_key="person")
    assert report.requests.users == before.requests.users
    assert [column.compressed_bytes for column in report.columns][:3] == [c.compressed_bytes for c in before.columns][
        :3
    ]


@pytest.mark.slow
def test_the_folder_of_an_iceberg_table_is_warned_about(rows, tmp_path):
    table = append_all(local_catalog(tmp_path), "a.t", rows)
    report = audit_table(table.location().removeprefix("file://"), **KEYS)
    assert f"those of the Iceberg table {tmp_path}" in report.verdict[0]
    assert render(report).startswith("These files are those of the Iceberg table")


@pytest.mark.slow
@pytest.mark.parametrize("table", ["one request", "one row", "single rows", "candidates", "keys only", "empty lists"])
def test_awkward_tables_are_audited(table, tmp_path):
    history = pa.array([[1, 2, 3]] * 40)
    tables = {
        "one request": pa.table({"member": [7] * 40, "session": [9] * 40, "history": history}),
        "one row": pa.table({"member": [7], "session": [9], "history": history.slice(0, 1)}),
        "single rows": pa.table({"member": [7] * 40, "session": range(40), "history": history}),
        "candidates": pa.table(
            {
                "member": [7] * 40,
                "session": range(40),
                "history": history,
                "shown": [[{"item": row, "click": 0}, {"item": 5, "click": 1}] for row in range(40)],
            }
        ),
        "keys only": pa.table({"member": [7] * 40, "session": [1, 2] * 20}),
        "empty lists": pa.table(
            {"member": [7] * 40, "session": [1, 2] * 20, "history": pa.array([[]] * 40, pa.list_(pa.int64()))}
        ),
    }
    report = audit_table(write_folder(tmp_path / "t", tables[table], files=1), **KEYS)
    assert report.table.rows == len(tables[table])
    assert report.layout("BY_REQUEST").bytes > 0
    text = render(report)
    assert text.startswith(report.verdict[0])
    if table == "single rows":
        assert any("every request has one row" in note for note in report.notes)
    if table == "candidates":
        assert any(
            note.startswith("if shown has the candidates of the request, 2 a row, convert --item")
            and "(shown.item, shown.click)" in note
            for note in report.notes
        )
    else:
        assert not any("candidates" in note for note in report.notes)


@pytest.mark.slow
def test_the_command_prints_text_or_json_and_no_traceback(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = ["--request-key", "session", "--user-key", "member", "--item-key", "item"]
    assert cli.main(["audit", str(folder), *keys]) == 0
    assert " as BY_REQUEST (" in capsys.readouterr().out.splitlines()[0]
    assert cli.main(["audit", str(folder), *keys, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 1
    assert cli.main(["audit", str(folder), "--request-key", "nope"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("reqdedup audit: ")
    assert "key column nope required" in shown.err
    assert "Traceback" not in shown.err
    assert cli.main(["audit", *keys]) == 2
    assert "either PATH or --table required" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_opens_a_table_of_a_catalog(rows, tmp_path, capsys):
    properties = {"uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/tables"}
    append_all(open_catalog(properties=properties), "a.t", rows)
    options = ["--catalog-uri", properties["uri"], "--warehouse", properties["warehouse"], "--request-key", "session"]
    assert cli.main(["audit", "--table", "a.t", *options]) == 0
    assert "a.t: " in capsys.readouterr().out
    assert cli.main(["audit", "--table", "a.nope", *options]) == 2
    assert "table a.nope is not in the catalog; there are: a.t" in capsys.readouterr().err
