"""The flags both training scripts share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detection.models import MODELS
from detection.schedule import DECAYS

# Faster R-CNN's usual 0.02 is for 16 images a batch; the rate goes with the batch.
LEARNING_RATE_PER_IMAGE = 0.02 / 16


def parser(description: str) -> argparse.ArgumentParser:
    """The parser; a script may add its own flags before `finish`."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    _add_data(result.add_argument_group("data: COCO format, or Penn-Fudan"))
    _add_detector(result.add_argument_group("detector"))
    _add_training(result.add_argument_group("training"))
    _add_run(result.add_argument_group("run"))
    return result


def finish(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check flags, and fill in the defaults that depend on other flags."""
    args = parser.parse_args(argv)
    _check_data(parser, args)
    for name in ("iterations", "batch_size", "log_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.image_size and (len(args.image_size) > 2 or not 0 < args.image_size[0] <= args.image_size[-1]):
        parser.error(f"--image-size expects SHORTER [LONGEST] in px, got {args.image_size}")
    if args.image_size:
        args.image_size = _both_sides(args.image_size)
    if args.lr is None:
        args.lr = LEARNING_RATE_PER_IMAGE * args.batch_size
    if args.warmup is None:
        args.warmup = min(500, args.iterations // 8)
    if args.resume is True:
        args.resume = args.out / "checkpoint.pt"
    return args


def _both_sides(image_size: list[int]) -> tuple[int, int]:
    shorter, *longest = image_size
    return shorter, longest[0] if longest else 2 * shorter


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--annotations", type=Path, help="training annotations, COCO JSON")
    group.add_argument("--images", type=Path, help="folder of the training images")
    group.add_argument("--val-annotations", type=Path, help="evaluation annotations; none: no evaluation")
    group.add_argument("--val-images", type=Path, help="folder of the evaluation images; none: --images")
    group.add_argument("--keep-empty", action="store_true", help="train on images without objects, too")
    group.add_argument("--penn-fudan", type=Path, help="folder with PNGImages and PedMasks")
    group.add_argument("--split", type=Path, help="JSON with lists of Penn-Fudan names; none: a fixed one")
    group.add_argument("--train-part", default="train", help="the split's list to train on")
    group.add_argument("--train-images", type=int, help="use only the first so many training images")


def _add_detector(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", choices=MODELS, default="fasterrcnn_mobilenet_v2_fpn", help="architecture")
    group.add_argument("--weights", type=Path, help="local state dict of the backbone or the whole detector")
    group.add_argument("--image-size", type=int, nargs="+", metavar="PX", help="shorter [longest] side; none: its own")


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--iterations", type=int, default=1000, help="optimizer steps")
    group.add_argument("--batch-size", type=int, default=4, help="images per step")
    group.add_argument("--lr", type=float, help="peak learning rate; none: 0.02 per 16 images")
    group.add_argument("--momentum", type=float, default=0.9, help="SGD's momentum")
    group.add_argument("--weight-decay", type=float, default=1e-4, help="SGD's weight decay")
    group.add_argument("--warmup", type=int, help="iterations of warm-up; none: an eighth, at most 500")
    group.add_argument("--decay", choices=DECAYS, default="cosine", help="how the learning rate falls")
    group.add_argument("--no-flip", action="store_true", help="do not flip images")
    group.add_argument("--amp", action="store_true", help="mixed precision (float16 on CUDA, else bfloat16)")


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, default=Path("runs/detector"), help="folder for all output")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    group.add_argument("--workers", type=int, default=0, help="processes that load images")
    group.add_argument("--threads", type=int, help="CPU threads of torch; none: its own choice")
    group.add_argument("--seed", type=int, default=0, help="of weights, order, flipping and sampling")
    group.add_argument("--eval-every", type=int, default=0, help="iterations; 0: at the end only")
    group.add_argument("--checkpoint-every", type=int, default=0, help="iterations; 0: at the end only")
    group.add_argument("--log-every", type=int, default=20, help="iterations between scalars")
    group.add_argument("--image-every", type=int, default=0, help="iterations between drawn batches; 0: none")
    group.add_argument(
        "--resume", type=Path, nargs="?", const=True, help="resume from this checkpoint, or from the one in --out"
    )


def _check_data(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if bool(args.penn_fudan) == bool(args.annotations):
        parser.error("give either --annotations and --images (COCO format) or --penn-fudan")
    if args.annotations and not args.images:
        parser.error("--annotations needs --images, the folder the file names are relative to")
