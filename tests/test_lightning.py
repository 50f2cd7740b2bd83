"""The callback for Lightning: a real detector in a LightningModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import all_equal, make_batch, make_detector, make_terse, parameters_of, weights_of
from frameworks import QUIET_LIGHTNING, need_lightning
from torch import Tensor

need_lightning()

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from terse_aug import ForegroundBank
from terse_aug_lightning import TerseCallback

pytestmark = QUIET_LIGHTNING


class Detector(LightningModule):
    """As a person writes it for torchvision's detectors; it records what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = make_detector("fasterrcnn")
        self.trained: list[Any] = []
        self.found: list[float] = []
        self.validated = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        # The detectors sample proposals: a function of the step, so that runs can be compared.
        torch.manual_seed(self.global_step)
        loss = sum(self.detector(images, targets).values())
        assert isinstance(loss, Tensor)
        self.trained.append(batch)
        self.found.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def collate(samples: list[Any]) -> tuple[list[Tensor], list[Any]]:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def loader() -> DataLoader[Any]:
    batches = [make_batch(seed) for seed in range(4)]
    samples: Any = [
        (image, target) for images, targets in batches for image, target in zip(images, targets, strict=True)
    ]
    return DataLoader(samples, batch_size=2, collate_fn=collate)


def fit(
    out: Path, steps: int, bank: ForegroundBank | None = None, policy: str = "critic", **changes: Any
) -> tuple[Detector, Any]:
    """A training on the CPU, and its Terse if there is a bank; a checkpoint is saved at its end."""
    module = Detector()
    terse = None if bank is None else make_terse(bank, policy, model=module.detector)
    resume = changes.pop("resume", None)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=out,
        callbacks=[] if terse is None else [TerseCallback(terse)],
        **{"logger": False, "enable_checkpointing": False, "limit_val_batches": 0} | _QUIET | changes,
    )
    trainer.fit(module, loader(), loader(), ckpt_path=resume)
    trainer.save_checkpoint(out / f"{steps}.ckpt")
    return module, terse


_QUIET: dict[str, Any] = {"enable_model_summary": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}


@pytest.mark.parametrize("policy", ["random", "critic"])
def test_the_training_step_gets_composites(tiny_bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    plain, _ = fit(tmp_path, 3)
    module, terse = fit(tmp_path, 3, tiny_bank, policy, limit_val_batches=1, val_check_interval=1)
    metrics = terse.metrics()
    assert (metrics["calls"], metrics["iterations"]) == (3, 3)
    assert metrics["updates"] == (0 if policy == "random" else 3)
    assert metrics["extra_forwards"] == metrics["feedback_failed"] == metrics["skipped_updates"] == 0
    assert module.validated == 3
    for (before, labels), (after, corrected) in zip(plain.trained, module.trained, strict=True):
        assert not torch.equal(before[0], after[0])
        assert len(corrected[0]["labels"]) > len(labels[0]["labels"])
    assert "training_step" not in vars(module)


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    """From the end of an epoch: within one Lightning begins with the first batch again."""
    whole, expected = fit(tmp_path, 3, tiny_bank, limit_train_batches=2)
    fit(tmp_path, 2, tiny_bank, limit_train_batches=2)
    rest, terse = fit(tmp_path, 3, tiny_bank, limit_train_batches=2, resume=tmp_path / "2.ckpt")
    assert rest.found == whole.found[2:]
    assert all_equal(weights_of(whole), weights_of(rest))
    state = terse.state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_accumulated_batches_make_one_update(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    module, terse = fit(tmp_path, 2, tiny_bank, "adversarial", accumulate_grad_batches=2)
    metrics = terse.metrics()
    assert (metrics["calls"], metrics["iterations"], metrics["updates"]) == (4, 2, 2)
    # The loop in the manual with the same batches and loss_scale.
    torch.manual_seed(0)
    other = make_detector("fasterrcnn")
    optimizer = torch.optim.SGD(other.parameters(), lr=1e-3)
    manual = make_terse(tiny_bank, "adversarial", model=other)
    losses = []
    for number, batch in enumerate(loader()):
        images, targets = manual(*batch)
        torch.manual_seed(number // 2)
        loss = torch.stack(list(other(images, targets).values())).sum()
        (loss / 2).backward()
        losses.append(loss.detach())
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
            manual.step(torch.stack(losses[-2:]).mean(), loss_scale=0.5)
    assert [float(loss) for loss in losses] == pytest.approx(module.found, rel=1e-6)
    assert all_equal(parameters_of(manual.policy), parameters_of(terse.policy))


def test_metrics_are_logged(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    _, terse = fit(tmp_path, 2, tiny_bank, logger=logger, log_every_n_steps=1)
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "terse_aug/hardness" in text.splitlines()[0]
    assert str(terse.metrics()["hardness"])[:6] in text


class Averages(LightningModule):
    """One weight times the images' average; with two optimizers, the second one stepped every second time."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.ones(1) for _ in range(optimizers))
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = torch.stack([image.mean() for image in batch[0]]).mean() * sum(own.sum() for own in self.weights)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimizer in self.optimizers()[: 1 + batch_idx % 2]:
                optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([own], lr=1e-3) for own in self.weights]


def run_on(module: Any, out: Path, terse: Any, **changes: Any) -> None:
    """Train two batches on the CPU."""
    own = {"logger": False, "enable_checkpointing": False, "limit_train_batches": 2, "max_epochs": 1}
    Trainer(accelerator="cpu", default_root_dir=out, callbacks=[TerseCallback(terse)], **own | _QUIET | changes).fit(
        module, loader()
    )


def test_a_compiled_training_step_stays_compiled(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    module, terse = Averages(), make_terse(tiny_bank, "random")
    run_on(torch.compile(module, backend=backend), tmp_path, terse)
    assert graphs
    assert terse.metrics()["calls"] == 2
    compiled = vars(module)["training_step"]
    run_on(module, tmp_path, terse)
    assert vars(module)["training_step"] is compiled


def test_metrics_are_logged_by_updates_of_several_optimizers(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    run_on(Averages(2), tmp_path, make_terse(tiny_bank, "random"), logger=logger, log_every_n_steps=2)
    assert "terse_aug/" in (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]
