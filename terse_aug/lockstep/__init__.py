"""Lock-step training, the paper's schedule: the policy mines hard examples for a frozen model, which are kept; then the
model trains on real images and on these."""

from terse_aug.lockstep.cache import HardExampleCache
from terse_aug.lockstep.cycle import LockStep
from terse_aug.lockstep.mining import HardExampleMiner, MiningReport
from terse_aug.lockstep.mixing import mix_batches

__all__ = ["HardExampleCache", "HardExampleMiner", "LockStep", "MiningReport", "mix_batches"]
