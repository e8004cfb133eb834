"""The deduplicated form in Arrow: rows that point at request-level values; compact, concatenate,
cut, take apart, sum up."""
