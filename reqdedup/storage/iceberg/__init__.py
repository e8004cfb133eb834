"""Tables as Iceberg has them: layout, data files, commit, references, catalogs."""
