"""Properties of every framework's adapter: the tests of each adapter inherit :class:`Conformance`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import bank_of, make_bank, white_disc
from framework_runs import Framework, Run, Seen
from PIL import Image

from terse_aug import ForegroundBank, PasteConfig
from terse_aug.cli import main
from terse_aug.config import POLICY_SETTINGS
from terse_aug.policies import MatchedPolicy
from terse_aug.policies.matched import box_features
from terse_aug.samplers import RaritySampler

PASTE = [field.name for field in dataclasses.fields(PasteConfig)]
Trainings = Callable[[str], Run]


def settings(policy: str = "random", **more: Any) -> dict[str, Any]:
    """Arguments of a hook with which every image gets a paste and the policy is updated in every iteration.

    Args:
        policy: its name.
        more: settings of the policy and of ``PasteConfig``, and arguments of the hook.
    """
    own = {"type": policy}
    if any(field.name == "update_interval" for field in dataclasses.fields(POLICY_SETTINGS[policy])):
        own |= {"update_interval": more.pop("update_interval", 1)}
    paste = {"paste_probability": 1.0, "objects": (1, 2)}
    paste |= {name: more.pop(name) for name in PASTE if name in more}
    return {"policy": own, "paste": paste, "seed": 0} | more


class Conformance:
    """The properties. A framework's tests give the fixture ``framework``, which lives as long as the module."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("whole")

    @pytest.fixture(scope="class")
    def whole(self, framework: Framework, folder: Path) -> Trainings:
        """Six iterations with a policy, a checkpoint saved after three; trained once for all tests."""
        runs: dict[str, Run] = {}

        def train(policy: str) -> Run:
            if policy not in runs:
                runs[policy] = framework.train(folder / policy, 6, terse=settings(policy), save_at=3)
            return runs[policy]

        return train

    def test_off_means_off(self, framework: Framework, tmp_path: Path) -> None:
        without, off = framework.train(tmp_path / "a"), framework.train(tmp_path / "b", terse=settings(enabled=False))
        assert off.terse is None
        assert without.losses == off.losses
        assert all(map(torch.equal, without.weights, off.weights))

    def test_labels_of_composites_are_right(self, framework: Framework, tmp_path: Path) -> None:
        run = framework.train(tmp_path, 5, terse=settings(objects=(2, 2), decoys=(0, 0), edge_blur_sigma=0.0))
        pairs = list(zip(chain(*run.loaded), chain(*run.entered), strict=True))
        assert len({tuple(after.image.shape) for _, after in pairs}) > 1
        assert any(len(before.boxes) == 0 for before, _ in pairs)
        for before, after in pairs:
            assert after.masks is not None
            height, width = after.image.shape[1:]
            assert after.image.shape == before.image.shape
            assert len(after.labels) == len(after.boxes) == len(after.masks) > 0
            assert 0 <= int(after.labels.min()) <= int(after.labels.max()) < len(framework.classes)
            assert bool((after.boxes >= 0).all() & (after.boxes[:, [0, 2]] <= width).all())
            assert bool((after.boxes[:, [1, 3]] <= height).all())
            pasted = self._pasted_rows(before, after)
            assert len(pasted) in (1, 2)
            # All changed pixels belong to a paste, and a paste's mask is where the image changed.
            changed = ((after.image - before.image).abs().amax(0) > 0.02).cpu()
            covered = after.masks[pasted].any(0).cpu()
            assert float((changed & ~covered).sum()) <= 0.15 * float(covered.sum())
            assert float((covered & ~changed).sum()) <= 0.1 * float(covered.sum())
            for row in pasted:
                rows, columns = after.masks[row].nonzero(as_tuple=True)
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert torch.allclose(after.boxes[row].cpu(), torch.stack(box).float().cpu(), atol=1.5)

    @staticmethod
    def _pasted_rows(before: Seen, after: Seen) -> list[int]:
        """Rows of the pasted objects: they follow the remaining old ones."""
        assert before.masks is not None
        assert after.masks is not None
        old = sum(
            bool((own & mask).sum() > 0.2 * mask.sum() and bool((own & ~mask).sum() == 0))
            for mask in before.masks
            for own in after.masks[: len(before.masks)]
        )
        return list(range(old, len(after.masks)))

    def test_colours_are_kept_and_classes_matched_by_name(self, framework: Framework, tmp_path: Path) -> None:
        """Red discs, on noise images up to half as bright."""
        disc = white_disc(side=20, relative_size=0.35)
        disc.rgba[..., 1:3] = 0
        red = make_bank(tmp_path, [dataclasses.replace(disc, label=label) for label in (1, 2)])
        run = framework.train(tmp_path / "out", 2, terse=settings(bank=str(red.path), decoys=(0, 0)))
        assert run.terse is not None
        assert run.terse.bank.categories == dict(enumerate(framework.classes))
        for before, after in zip(chain(*run.loaded), chain(*run.entered), strict=True):
            new = ((after.image - before.image).abs().amax(0) > 0.4).cpu()
            colour = after.image[:, new].mean(1)
            assert int(new.sum()) > 30
            assert colour[0] > 0.8
            assert colour[1:].max() < 0.2

    @pytest.mark.parametrize("policy", ["adversarial", "critic"])
    def test_the_policy_learns_from_the_loss(
        self, framework: Framework, tmp_path: Path, whole: Trainings, policy: str
    ) -> None:
        first, last = framework.train(tmp_path, 1, terse=settings(policy)), whole(policy)
        assert (first.metrics["updates"], last.metrics["updates"]) == (1, 6)
        pairs = zip(first.terse.policy.parameters(), last.terse.policy.parameters(), strict=True)
        assert any(not torch.equal(own, other) for own, other in pairs)

    def test_the_real_boxes_reach_the_policy(self, framework: Framework, tmp_path: Path) -> None:
        run = framework.train(tmp_path, 6, terse=settings("matched", compose_ahead=False))
        assert run.terse is not None
        policy = run.terse.policy
        assert isinstance(policy, MatchedPolicy)
        real = [own for own in chain(*run.loaded) if len(own.boxes)]
        sizes = [own.boxes.new_tensor(own.image.shape[:0:-1]).repeat(2) for own in real]
        expected = torch.cat([own.boxes / size for own, size in zip(real, sizes, strict=True)]).cpu()
        assert int(policy.real.count) == len(expected) > 3
        torch.testing.assert_close(policy.real.features[: len(expected)], box_features(expected.float()))
        assert len(policy.real.labels[: len(expected)].unique()) == len(framework.classes)

    def test_a_seed_gives_the_same_run_and_another_seed_another(
        self, framework: Framework, tmp_path: Path, whole: Trainings
    ) -> None:
        first, same = whole("critic"), framework.train(tmp_path / "a", 6, terse=settings("critic"))
        assert same.losses == first.losses
        assert all(map(torch.equal, same.weights, first.weights))
        assert framework.train(tmp_path / "b", 1, terse=settings("critic", seed=6)).losses[0] != first.losses[0]

    @pytest.mark.parametrize("policy", ["critic", "adversarial", "best-of-n"])
    def test_global_random_generators_are_left_alone(
        self, framework: Framework, tmp_path: Path, whole: Trainings, policy: str
    ) -> None:
        run = framework.train(tmp_path, terse=settings(policy)) if policy == "best-of-n" else whole(policy)
        assert run.metrics["objects_pasted"] > 0
        assert len(run.draws) == 2 * len(run.losses)
        assert all(before == after for before, after in run.draws)

    @pytest.mark.parametrize("policy", ["critic", "adversarial"])
    def test_a_resumed_run_equals_an_uninterrupted_one(
        self, framework: Framework, folder: Path, whole: Trainings, policy: str
    ) -> None:
        expected = whole(policy)
        rest = framework.train(folder / policy, 6, terse=settings(policy), start=3)
        assert rest.losses == expected.losses[3:]
        assert all(map(torch.equal, expected.weights, rest.weights))
        assert expected.terse is not None
        assert rest.terse is not None
        state = rest.terse.state_dict()
        for name, value in expected.terse.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=0, equal_nan=True, msg=name)

    def test_the_state_of_another_policy_is_refused(self, framework: Framework, folder: Path, whole: Trainings) -> None:
        whole("critic")
        with pytest.raises(ValueError, match="terse-aug does not fit: use the policy and settings"):
            framework.train(folder / "critic", 6, terse=settings("adversarial"), start=3)

    def test_backgrounds_distractors_and_occludees_enter_the_model(self, framework: Framework, tmp_path: Path) -> None:
        (tmp_path / "pool").mkdir()
        Image.new("RGB", (140, 90), (200, 0, 0)).save(tmp_path / "pool" / "red.png")
        more: dict[str, Any] = {
            "backgrounds": {framework.pool: str(tmp_path / "pool"), "probability": 1.0},
            "distractors": {"bank": bank_of(tmp_path, "teapot"), "count": (1, 1)},
            "sampler": "rarity",
        }
        run = framework.train(tmp_path / "out", 2, terse=settings(occluded_object_probability=0.5, **more))
        assert run.terse is not None
        assert isinstance(run.terse.sampler, RaritySampler)
        assert run.metrics["backgrounds"] == run.metrics["images"] == 4
        assert run.metrics["distractors"] > 0
        for seen in chain(*run.entered):
            assert seen.masks is not None
            red = (seen.image[0] > 0.75) & (seen.image[1:].amax(0) < 0.04)
            # Other pixels belong to a distractor or to an edge.
            assert float(red[~seen.masks.bool().any(0)].float().mean()) > 0.6
            assert 1 <= len(seen.labels) <= 6

    def test_it_trains_on_perturbed_composites(self, framework: Framework, tmp_path: Path) -> None:
        terse = settings("critic", robustness={"steps": 2})
        run, clean = framework.train(tmp_path, 2, terse=terse), framework.train(tmp_path, 2, terse=settings("critic"))
        metrics = run.metrics
        assert (metrics["robustness/images"], metrics["robustness/passes"]) == (4, 8)
        assert metrics["robustness/not_finite"] == metrics["robustness/no_gradient"] == metrics["extra_forwards"] == 0
        assert metrics["hardness"] > 0  # recorded from the training forward
        assert run.losses[0] != clean.losses[0]
        assert not all(map(torch.equal, run.weights, clean.weights))

    def test_classes_have_to_be_those_of_the_data_set(self, framework: Framework, tmp_path: Path) -> None:
        for own, message in (
            ({"bank": bank_of(tmp_path, "cat", "mouse")}, "the bank has categories that the detector lacks: mouse"),
            ({"distractors": {"bank": bank_of(tmp_path, "dog")}}, "distractors: dog: the detector knows this class"),
        ):
            with pytest.raises(ValueError, match=message):
                framework.train(tmp_path, 1, terse=settings(**own))

    def test_a_checkpoint_without_a_state_loads_with_one_warning(self, framework: Framework, tmp_path: Path) -> None:
        framework.train(tmp_path, 1, save_at=1)
        run = framework.train(tmp_path, 2, terse=settings("critic"), start=1)
        assert run.metrics["iterations"] == 1
        assert len([text for text in run.warned if "no state of terse-aug" in text]) == 1

    @pytest.mark.parametrize("policy", ["critic", "adversarial"])
    def test_a_loss_that_is_not_finite_skips_the_update(
        self, framework: Framework, tmp_path: Path, policy: str
    ) -> None:
        with pytest.warns(UserWarning, match="the loss is inf"):
            run = framework.train(tmp_path, 3, terse=settings(policy), not_finite_at=1, model="plain")
        assert [run.metrics[name] for name in ("iterations", "updates", "skipped_updates")] == [3, 2, 1]
        assert run.terse is not None
        assert all(bool(parameter.isfinite().all()) for parameter in run.terse.parameters())

    def test_memory_does_not_grow(self, framework: Framework, tmp_path: Path) -> None:
        if not Path("/proc/self/statm").exists():
            pytest.skip("memory in use is read from /proc")
        # In the loop: with a thread the memory of a batch that is being composed is in use, or not, as time has it.
        terse = settings("critic", update_interval=10, compose_ahead=False)
        run = framework.train(tmp_path, 100, terse=terse, model="plain")
        # The memory of one iteration comes and goes; 70 kB lost in each would be seen.
        early, late = min(run.resident[20:40]), min(run.resident[-20:])
        assert late - early < 4, run.resident[::10]

    def test_a_bank_is_built_from_the_data_set(self, framework: Framework, tmp_path: Path) -> None:
        build, flags = framework.bank_source(tmp_path)
        report = build(tmp_path / "own.bank")
        bank = ForegroundBank.open(tmp_path / "own.bank")
        assert bank.categories == dict(enumerate(framework.classes))
        assert len(bank) == sum(report.kept.values()) == 6
        assert main(["bank", "build", *flags, "--out", str(tmp_path / "cli.bank")]) == 0
        assert ForegroundBank.open(tmp_path / "cli.bank").fingerprint == bank.fingerprint

    def test_a_bank_is_built_from_boxes_alone(self, framework: Framework, tmp_path: Path) -> None:
        def whole_box(image: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
            left, top, right, bottom = (round(edge) for edge in (*box[:2], box[0] + box[2], box[1] + box[3]))
            mask = np.zeros(image.shape[:2], bool)
            mask[top:bottom, left:right] = True
            return mask

        framework.bank_source(tmp_path)[0](tmp_path / "masks.bank")
        build, flags = framework.bank_source(tmp_path, boxes_only=True)
        with pytest.raises(ValueError, match="no mask: the annotation has a box only"):
            build(tmp_path / "none.bank", rejected_sheet=tmp_path / "rejected.png")
        assert (tmp_path / "rejected.png").stat().st_size > 1000
        report, custom = (
            build(tmp_path / "ellipse.bank", boxes="ellipse"),
            build(tmp_path / "box.bank", boxes=whole_box),
        )
        assert (report.mask_sources, custom.mask_sources) == ({"ellipse": 6}, {"function whole_box": 6})
        assert main(["bank", "build", *flags, "--out", str(tmp_path / "cli.bank"), "--boxes", "ellipse"]) == 0
        names = ("masks", "ellipse", "box", "cli")
        masks, ellipses, boxes, cli = (ForegroundBank.open(tmp_path / f"{name}.bank") for name in names)
        assert cli.fingerprint == ellipses.fingerprint
        for mask, ellipse, box in zip(masks, ellipses, boxes, strict=True):
            assert (box.rgba[..., 3] == 255).all()
            assert ellipse.rgba[0, 0, 3] == 0
            assert np.abs(np.subtract([box.size, ellipse.size], mask.size)).max() <= 2
