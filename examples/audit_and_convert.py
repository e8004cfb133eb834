"""What a table of yours would save, and the same rows in a layout of ours.

python examples/audit_and_convert.py impressions

The folder holds Parquet files with the columns named below; impressions.py makes one up, put yours in their place.
"""

import sys

import reqdedup as rd

COLUMNS = {
    "user": "user_id",
    "request": "request_id",
    "item": "item_id",
    "time": "ts",
    "time_unit": "s",
    "labels": ["click"],
    "rename": {"history": "history_item_id"},  # what the models look for
}

folder = sys.argv[1]
report = rd.open("lake").audit(folder, request_key="request_id", user_key="user_id")
print(*report.verdict, sep="\n")

converted = rd.open("lake").convert(folder, "ads.engagements", COLUMNS)
print(f"{converted.rows} rows in {converted.location}, {converted.bytes} bytes of {converted.source_bytes}")
print(rd.open("lake").table("ads.engagements").to_polars(["user_id", "item_id", "click"]).head())
