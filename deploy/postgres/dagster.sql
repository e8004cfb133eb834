-- Run history and event log of Dagster, beside the catalog's database; read once, when the volume is new.
CREATE DATABASE dagster;
