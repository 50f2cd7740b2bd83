"""Command line and evaluation of both scripts."""

from __future__ import annotations

import argparse

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup
from detectron2.evaluation import COCOEvaluator

from pedestrians import backbone, datasets  # noqa: F401 - they register names used in configs


class Trainer(DefaultTrainer):
    """Detectron2's own, with COCO's evaluation."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """Average precision of boxes, and of masks where the model has them."""
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        return COCOEvaluator(dataset_name, tasks, output_dir=f"{cfg.OUTPUT_DIR}/inference")


def arguments() -> argparse.Namespace:
    """Detectron2's flags, and three more."""
    parser = default_argument_parser()
    parser.add_argument(
        "--coco",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help="register a data set in COCO's format; may be given several times",
    )
    parser.add_argument("--zoo", metavar="NAME", help="a config of Detectron2's model zoo, to be read first")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    return parser.parse_args()


def prepare(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """The config from files and flags; registers the data sets that it names."""
    for name, file, images in args.coco:
        register_coco_instances(name, {}, file, images)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.zoo:
        cfg.merge_from_file(model_zoo.get_config_file(args.zoo))
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg
