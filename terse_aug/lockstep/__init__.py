"""Training in lock-step, the paper's own schedule: the policy hunts a frozen target, its finds are kept, and the target
then trains on real and kept images."""

from terse_aug.lockstep.cache import HardExampleCache
from terse_aug.lockstep.cycle import LockStep
from terse_aug.lockstep.mining import HardExampleMining, MiningReport, mixed

__all__ = ["HardExampleCache", "HardExampleMining", "LockStep", "MiningReport", "mixed"]
