"""Store, move and compute request-level data once per request.

Importing the package does no work and pulls in neither torch nor Dagster: import the room you need, for example
`from reqdedup import storage` (pyarrow, pyiceberg) or `from reqdedup import models` (torch, the `train` extra).
"""

__version__ = "0.1.0"
