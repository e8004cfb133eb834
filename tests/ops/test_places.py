"""Both forms of looking an id up among rising ones agree with a dictionary."""

import numpy as np
import pytest
import torch

from reqdedup.arrays.places import places_in
from reqdedup.ops.places import places_of


@pytest.mark.parametrize(
    "rising", [[], [5], [-3, 0, 7], [-(2**63), 2, 2**63 - 1]], ids=["none", "one", "some", "extremes"]
)
def test_places_are_those_of_a_dictionary(rising: list[int]):
    number = {value: place for place, value in enumerate(rising)}
    asked = [*rising[::-1], 0, 6, -4, 2**62, 5, 5]
    expected = [number.get(value, -1) for value in asked]
    assert places_in(np.array(asked), np.array(rising, np.int64)).tolist() == expected
    found = places_of(torch.tensor(asked), torch.tensor(rising, dtype=torch.int64))
    assert found.tolist() == expected
    assert found.dtype == torch.int64
    assert len(places_in(np.zeros(0, np.int64), np.array(rising, np.int64))) == 0
    assert places_of(torch.zeros(2, 0, dtype=torch.int64), torch.tensor(rising)).shape == (2, 0)
