"""Train a detector with Detectron2. `train_net_with_terse.py` is this file with terse-aug."""

from detectron2.config import get_cfg
from detectron2.engine import launch

from pedestrians.setup import Trainer, arguments, prepare


def main(args):
    """Train, or evaluate with --eval-only, as config and flags set."""
    cfg = get_cfg()
    prepare(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        return Trainer.test(cfg, trainer.model)
    return trainer.train()


if __name__ == "__main__":
    args = arguments()
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
