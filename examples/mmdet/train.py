"""Train with a config, like MMDetection's own tool: ``python train.py CONFIG [--resume]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from terse_aug_mmdet import allow_own_checkpoints


def main() -> None:
    """Build the runner and train."""
    allow_own_checkpoints()  # for configs without terse-aug too
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/ and the config's name")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in the work dir")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={}, help="settings to replace")
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = str(args.work_dir or Path("work_dirs") / args.config.stem)
    cfg.resume = args.resume
    Runner.from_cfg(cfg).train()


if __name__ == "__main__":
    main()
