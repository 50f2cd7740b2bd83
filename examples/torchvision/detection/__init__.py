"""What both training scripts of this folder share: data, detectors, evaluation, checkpoints, logging.

Nothing here imports terse_aug; `train.py` works without it.
"""
