"""Train a detector with Detectron2 and copy-paste by terse-aug. `train_net.py` is this file without terse-aug."""

from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import launch
from terse_aug_detectron2 import TerseHook, TerseMapper, add_terse_config

from pedestrians.setup import Trainer, arguments, prepare


class PastingTrainer(Trainer):
    """Foregrounds are read where the images are, in the data loader's workers."""

    @classmethod
    def build_train_loader(cls, cfg):
        """The default loader with another mapper; without it pasting works the same, but is slower."""
        return build_detection_train_loader(cfg, mapper=TerseMapper.from_config(cfg))


def main(args):
    """Train, or evaluate with --eval-only, as config and flags set."""
    cfg = get_cfg()
    add_terse_config(cfg)
    prepare(cfg, args)
    trainer = PastingTrainer(cfg)
    trainer.register_hooks([TerseHook.from_config(cfg)])
    trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        return Trainer.test(cfg, trainer.model)
    return trainer.train()


if __name__ == "__main__":
    args = arguments()
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
