"""Where the tasks of one operation run: in this process, in N processes of this machine, or on a Ray cluster.

    work, [task, task, ...] -> engine.run -> (number, result), in any order, each once

It knows nothing of tables: a `Work` is what all tasks of an operation share, and a task is one part of it. Both are
pickled for another process, so neither may hold a credential. Deadlines and repetitions are in `attempts`, the same for
all engines; `pooled` is what they share. docs/decisions/0081, 0101.
"""

from reqdedup.distributed.engine import SHUFFLE_PAYS_FROM, Engine, Inline, Task, Work, engine_for
from reqdedup.distributed.processes import Processes
from reqdedup.distributed.totals import Totals, counted

__all__ = [
    "SHUFFLE_PAYS_FROM",
    "Engine",
    "Inline",
    "Processes",
    "Task",
    "Totals",
    "Work",
    "counted",
    "engine_for",
]
