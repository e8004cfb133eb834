"""Names are checked against shapes; one thread: these tensors are tiny, and test processes share the cores."""

from __future__ import annotations

import pytest
import torch

from tests.shapes import check_library

check_library()


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
