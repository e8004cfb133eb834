"""Names are checked against shapes."""

from tests.shapes import check_library

check_library()
