"""Train a torchvision detector on COCO-format data or Penn-Fudan, in plain PyTorch, with terse-aug's pasting.

`train.py` beside it is this file without terse-aug.
"""

from collections.abc import Sequence

import torch

from detection import checkpoint, models, options, pasting
from detection.evaluation import Evaluator, autocast_dtype
from detection.loading import TrainingOrder, seed_iteration, to_device, training_batches
from detection.reporting import Report
from detection.schedule import learning_rate, set_learning_rate
from detection.sources import open_data
from terse_aug import Terse


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate and write checkpoints."""
    args = options.finish(pasting.add_flags(options.parser(__doc__)), argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    training_set, evaluation_set, data = open_data(args)
    evaluator = Evaluator(evaluation_set) if evaluation_set else None

    torch.manual_seed(args.seed)
    detector = models.build(args.model, training_set, args.image_size, args.weights).to(device)
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and device.type == "cuda")

    bank = pasting.open_bank(args, training_set)
    terse = Terse(bank, model=detector, classes=training_set.classes, seed=args.seed, **pasting.settings(args))
    terse.to(device)

    state = {"detector": detector, "optimizer": optimizer, "terse": terse}
    if scaler.is_enabled():
        state["scaler"] = scaler
    report = Report(args.out, args, data)
    start = 0
    if args.resume:
        saved = checkpoint.load(args.resume)
        start = report.resume(saved)
        saved.restore(state)
    terse.close_after(pasting.open_iterations(args, start))

    order = TrainingOrder(len(training_set), args.batch_size, args.seed, start, args.iterations, flip=not args.no_flip)
    loader = training_batches(training_set, order, args.workers, pin_memory=device.type == "cuda")
    detector.train()
    with report:
        for iteration, (images, targets) in enumerate(loader, start):
            seed_iteration(args.seed, iteration)
            rate = learning_rate(iteration, args.iterations, args.lr, args.warmup, args.decay)
            set_learning_rate(optimizer, rate)

            images, targets = to_device(images, targets, device)
            with torch.autocast(device.type, autocast_dtype(device), enabled=args.amp):
                images, targets = terse(images, targets)
                losses = detector(images, targets)
            scaler.scale(sum(losses.values())).backward()
            scaler.step(optimizer)
            terse.step(losses, loss_scale=scaler.get_scale())
            scaler.update()
            optimizer.zero_grad()
            report.step(iteration, losses, images, targets, rate, terse.metrics())

            done = iteration + 1
            last = done == args.iterations
            if evaluator and (last or (args.eval_every and done % args.eval_every == 0)):
                with report.evaluating():
                    measures = evaluator.measure(detector, device, args.batch_size, args.workers, args.amp)
                    measures |= pasting.probe(terse, detector, training_set, args.probe_images, args.batch_size)
                report.add_evaluation(measures)
            if last or (args.checkpoint_every and done % args.checkpoint_every == 0):
                checkpoint.save(args.out / "checkpoint.pt", state, done, report.notes())
        report.write()


if __name__ == "__main__":
    main()
