"""Where the lake is: argument, variables, reqdedup.toml, pyiceberg's configuration, default, in this order."""

from __future__ import annotations

from pathlib import Path

import pytest

from reqdedup.environment import find_lake

ROOT = Path(__file__).resolve().parents[1]
SERVER = {"REQDEDUP_CATALOG__URI": "http://127.0.0.1:1", "REQDEDUP_CATALOG__WAREHOUSE": "lake"}


@pytest.fixture(autouse=True)
def no_pyiceberg_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path / "nothing"))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_each_word_goes_before_the_next(tmp_path, monkeypatch):
    def uri(*where, environment=(), **options):
        return find_lake(*where, environment=dict(environment), folder=tmp_path, **options).properties.get("uri")

    assert uri() == f"sqlite:///{tmp_path}/reqdedup-lake/catalog.db"
    monkeypatch.setenv("PYICEBERG_CATALOG__REQDEDUP__URI", "http://127.0.0.1:4")
    assert uri() is None  # left to pyiceberg
    write(tmp_path / "reqdedup.toml", '\ufeffdata_dir = "here"')  # with a byte order mark, as some editors write it
    assert uri() == f"sqlite:///{tmp_path}/here/catalog.db"
    write(tmp_path / "reqdedup.toml", '[catalog]\nuri = "http://127.0.0.1:3"')
    assert uri() == "http://127.0.0.1:3"
    assert uri(environment={"REQDEDUP_DATA_DIR": "there"}) == f"sqlite:///{tmp_path}/there/catalog.db"
    assert uri(environment=SERVER) == "http://127.0.0.1:1"
    assert uri(environment={**SERVER, "REQDEDUP_DATA_DIR": "there"}) == "http://127.0.0.1:1"
    assert uri("mine", environment=SERVER) == f"sqlite:///{tmp_path}/mine/catalog.db"
    assert uri(f"file://{tmp_path}/mine") == uri("mine")
    assert uri("sqlite:///my.db", environment=SERVER) == f"sqlite:///{tmp_path}/my.db"
    assert uri(catalog="prod", environment=SERVER) is None
    files = find_lake(warehouse="w", environment={"REQDEDUP_DATA_DIR": "there"}, folder=tmp_path)
    assert (files.database, files.properties["warehouse"]) == (
        tmp_path / "there" / "catalog.db",
        f"file://{tmp_path}/w",
    )


def test_a_key_from_a_variable_joins_the_place_from_a_file_and_no_place_from_an_argument(tmp_path):
    write(
        tmp_path / "reqdedup.toml",
        '[catalog]\nuri = "http://127.0.0.1:3"\nwarehouse = "w"\n[catalog.s3]\nendpoint = "e"',
    )
    secret = {"REQDEDUP_CATALOG__S3__SECRET_ACCESS_KEY": "hidden"}
    found = find_lake(environment=secret, folder=tmp_path)
    assert found.properties == {
        "uri": "http://127.0.0.1:3",
        "warehouse": "w",
        "s3.endpoint": "e",
        "s3.secret-access-key": "hidden",
    }
    assert "hidden" not in repr(found) + found.options
    assert "hidden" not in find_lake("http://other", warehouse="w", environment=secret).properties.values()


def test_the_file_is_found_at_the_root_of_the_project_and_no_further(tmp_path):
    write(tmp_path / "reqdedup.toml", 'data_dir = "outer"')
    write(tmp_path / "project" / "pyproject.toml", "")
    inside = tmp_path / "project" / "notebooks" / "deep"
    inside.mkdir(parents=True)
    assert find_lake(environment={}, folder=inside).data_dir == inside / "reqdedup-lake"
    write(tmp_path / "project" / "reqdedup.toml", 'data_dir = "lake"')
    assert find_lake(environment={}, folder=inside).data_dir == tmp_path / "project" / "lake"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[catalog]\nuri = "http://h"\ntoken = "t"', "found token; set the variable REQDEDUP_CATALOG__TOKEN"),
        ('[catalog]\n"s3.access-key-id" = "t"', "set the variable REQDEDUP_CATALOG__S3__ACCESS_KEY_ID instead"),
        ('[catalog.s3]\nsecret-access-key = "t"', "found s3.secret-access-key"),
        ('[catalog]\nuri = "postgresql+psycopg2://me:hidden@h/c"', "found uri; set the variable"),
        ('[catalog]\npy-catalog-impl = "os.system"', "no names of code required"),
        ("lake = 3", r"keys data_dir and \[catalog\] required, found lake"),
        ("data_dir = 3", "as text"),
        ("data_dir = ", "TOML required"),
    ],
)
def test_a_file_with_secrets_or_code_or_unknown_keys_is_refused(tmp_path, text, said):
    write(tmp_path / "reqdedup.toml", text)
    with pytest.raises(ValueError, match=said) as caught:
        find_lake(environment={}, folder=tmp_path)
    assert "hidden" not in str(caught.value)


def test_a_warehouse_with_credentials_is_refused_since_tables_store_it(tmp_path):
    with pytest.raises(ValueError, match=r"without credentials required, found s3://AKID:\*\*\*@b") as caught:
        find_lake("sqlite:///c.db", warehouse="s3://AKID:hidden@b/x", environment={}, folder=tmp_path)
    assert "hidden" not in str(caught.value)


def test_two_arguments_that_name_two_lakes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found both"):
        find_lake("folder", catalog="prod", environment={})
    with pytest.raises(ValueError, match="found an empty text"):
        find_lake("", environment={})
    with pytest.raises(ValueError, match="needs a warehouse"):
        find_lake("http://127.0.0.1:9", environment={})


WAREHOUSE = {"REQDEDUP_CATALOG__WAREHOUSE": "s3://bucket/tables", "REQDEDUP_CATALOG__S3__ENDPOINT": "http://s3"}


def test_the_pipeline_the_command_line_and_notebooks_mean_the_same_lake():
    from pipelines.environment import Environment

    for variables in ({}, SERVER, {"REQDEDUP_DATA_DIR": "elsewhere"}, {"REQDEDUP_CATALOG__S3__REGION": "r"}, WAREHOUSE):
        pipeline = Environment.from_os(variables)
        for folder in (ROOT, ROOT / "notebooks"):
            lake = find_lake(environment=variables, folder=folder)
            if "REQDEDUP_DATA_DIR" not in variables:  # a relative one is of the working folder
                assert lake == pipeline.lake
                assert lake.data_dir in (None, pipeline.data_dir)


def test_the_options_shown_open_the_same_lake(tmp_path):
    for lake in (
        find_lake("lake", environment={}, folder=tmp_path),
        find_lake("lake", warehouse="s3://bucket/files", environment={}, folder=tmp_path),
        find_lake("http://127.0.0.1:3", warehouse="w", environment={}, folder=tmp_path),
    ):
        said = dict(zip((words := lake.options.split())[::2], words[1::2]))
        shown = find_lake(said["--catalog-uri"], warehouse=said.get("--warehouse"), environment={}, folder=tmp_path)
        assert {"type": "sql", **shown.properties} == {"type": "sql", **lake.properties}
