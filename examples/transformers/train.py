"""Train a detector of Hugging Face's transformers on COCO-format data, with or without terse-aug.

Nothing is downloaded: the model and its image processor are read from a folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, AutoModelForObjectDetection, Trainer, TrainingArguments

from terse_aug.bank import build_from_coco
from terse_aug_transformers import TerseCallback, collate_detection


class CocoDetection(Dataset[dict[str, Any]]):
    """Images of a COCO JSON through an image processor; labels are numbered from 0 on in the order of category ids."""

    def __init__(self, annotations: Path, images: Path, processor: Any):
        self.coco, self.folder, self.processor = COCO(str(annotations)), images, processor
        self.ids = sorted(self.coco.imgs)
        self.category_ids = sorted(self.coco.cats)
        self.names = [self.coco.cats[category]["name"] for category in self.category_ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_id = self.ids[index]
        with Image.open(self.folder / self.coco.imgs[image_id]["file_name"]) as opened:
            image = opened.convert("RGB")
        own = self.coco.loadAnns(self.coco.getAnnIds(image_id))
        objects = [entry | {"category_id": self.category_ids.index(entry["category_id"])} for entry in own]
        made = self.processor(
            images=image, annotations={"image_id": image_id, "annotations": objects}, return_tensors="pt"
        )
        return {name: values[0] for name, values in made.items()}


@torch.no_grad()
def average_precision(model: Any, data: CocoDetection) -> float:
    """Box AP over COCO's overlaps, in per cent."""
    found = []
    for index, image_id in enumerate(data.ids):
        inputs = collate_detection([data[index]])
        inputs.pop("labels")
        output = model.eval()(**{name: value.to(model.device) for name, value in inputs.items()})
        size = [(data.coco.imgs[image_id]["height"], data.coco.imgs[image_id]["width"])]
        (own,) = data.processor.post_process_object_detection(output, threshold=0.0, target_sizes=size)
        for score, label, (left, top, right, bottom) in zip(
            own["scores"].tolist(), own["labels"].tolist(), own["boxes"].tolist(), strict=True
        ):
            entry = {"image_id": image_id, "category_id": data.category_ids[label], "score": score}
            found.append(entry | {"bbox": [left, top, right - left, bottom - top]})
    measured = COCOeval(data.coco, data.coco.loadRes(found), "bbox")
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    return 100 * float(measured.stats[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, and write model, checkpoints and `results.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with config, weights and image processor")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO JSON of the training images")
    parser.add_argument("--images", type=Path, required=True, help="their folder")
    parser.add_argument("--val-annotations", type=Path, help="COCO JSON of other images, for AP at the end")
    parser.add_argument("--val-images", type=Path, help="their folder; none: that of the training images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--policy", default="random", help="random, matched, critic, ..., or none for no pasting")
    parser.add_argument("--bank", type=Path, help="foregrounds; none: taken from the training images, kept in --out")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", help="a checkpoint folder in --out")
    args = parser.parse_args(argv)

    args.out.mkdir(parents=True, exist_ok=True)
    processor = AutoImageProcessor.from_pretrained(args.model, local_files_only=True)
    data = CocoDetection(args.annotations, args.images, processor)
    torch.manual_seed(args.seed)
    # From the checkpoint too: Trainer alone does not find all weights of RT-DETR in it (transformers 5.24).
    model = AutoModelForObjectDetection.from_pretrained(
        args.resume or args.model,
        local_files_only=True,
        id2label=dict(enumerate(data.names)),
        label2id={name: label for label, name in enumerate(data.names)},
        ignore_mismatched_sizes=True,
    )
    callbacks = []
    if args.policy != "none":
        bank = args.bank or args.out / "foregrounds.bank"
        if not bank.exists():
            print(build_from_coco(args.annotations, args.images, bank))
        callbacks.append(TerseCallback(bank, args.policy))
    training = TrainingArguments(
        output_dir=str(args.out),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.lr,
        dataloader_num_workers=args.workers,
        save_steps=args.save_every,
        seed=args.seed,
        logging_steps=20,
        report_to=[],
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model,
        training,
        train_dataset=data,
        data_collator=collate_detection,
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=args.resume)
    trainer.save_model()
    results: dict[str, Any] = {"policy": args.policy, "steps": args.steps, "log": trainer.state.log_history}
    if args.val_annotations:
        evaluated = CocoDetection(args.val_annotations, args.val_images or args.images, processor)
        results["AP"] = average_precision(model, evaluated)
    (args.out / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
