"""What a step is: spec, windows, n-step returns, frame stacks. numpy only, no I/O."""

from diskreplay.experience.batch import Batch, SequenceBatch
from diskreplay.experience.spec import ArraySpec, StepSpec

__all__ = ["ArraySpec", "Batch", "SequenceBatch", "StepSpec"]
