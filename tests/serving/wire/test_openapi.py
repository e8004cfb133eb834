"""The page says of a request what its bodies are checked by."""

from __future__ import annotations

from reqdedup.serving.limits import Limits
from reqdedup.serving.server.openapi import openapi
from reqdedup.serving.server.swap import Part, Served
from reqdedup.serving.wire.bodies import MOMENT, Inputs


def test_the_page_bounds_a_requests_moment_and_names_its_unit():
    inputs = Inputs(request={"request_ts": MOMENT})
    part = Part(task="ranking", bundle="one", fingerprint="one", run=list, inputs=inputs)
    paths = openapi(Served(parts={"ranking": part}), Limits(), None)["paths"]
    body = paths["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    said = body["properties"]["request"]["properties"]["request_ts"]
    assert "microseconds since 1970" in said["description"]
    assert (said["minimum"], said["maximum"] > 1_700_000_000_000_000) == (365 * 86_400_000_000, True)
