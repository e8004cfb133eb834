"""Where a training run stands, as its ranks tell it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Where a run stands: `stage` is reading, training or evaluating; loss [nats], rows per second since the last.

    num_steps: planned, later taken: fewer if patience ends the training, or if steps without two rows are left out.
    """

    stage: str
    step: int
    num_steps: int
    loss: float = math.nan
    rows_per_s: float = 0.0

    @property
    def phase(self) -> str:
        """The stage, and where training stands."""
        if self.stage != "training":
            return self.stage
        return f"loss {self.loss:.4f}, {self.rows_per_s:,.0f} rows/s"

    @property
    def is_last(self) -> bool:
        """Whether it is the last step of the training."""
        return self.stage == "training" and self.step == self.num_steps

    @property
    def done(self) -> int:
        return self.step

    @property
    def total(self) -> int | None:
        """Steps, while they are taken."""
        return self.num_steps if self.stage == "training" else None

    def __str__(self) -> str:
        if self.stage != "training":
            return f"{self.stage} ({self.step}/{self.num_steps} steps done)"
        return f"step {self.step}/{self.num_steps}  loss {self.loss:.4f}  {self.rows_per_s:,.0f} rows/s"
