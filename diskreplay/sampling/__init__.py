"""Which step ids make up a batch, and with which probability."""

from diskreplay.sampling.prioritized import PrioritizedSampler
from diskreplay.sampling.sampler import Draw, Sampler
from diskreplay.sampling.uniform import UniformSampler

__all__ = ["Draw", "PrioritizedSampler", "Sampler", "UniformSampler"]
