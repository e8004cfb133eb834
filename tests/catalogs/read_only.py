"""Files that may be read and nothing else, as a role without the right to write has them."""

from __future__ import annotations

from pyiceberg.io import InputFile, OutputFile
from pyiceberg.io.pyarrow import PyArrowFileIO


class ReadOnlyFileIO(PyArrowFileIO):
    def new_output(self, location: str) -> OutputFile:
        raise PermissionError(f"write {location}")

    def delete(self, location: str | InputFile | OutputFile) -> None:
        raise PermissionError(f"delete {location}")
