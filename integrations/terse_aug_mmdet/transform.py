"""The transform: fetches cut-outs where the images are loaded, in the data loader's workers."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from terse_aug import ForegroundLoader
from terse_aug_mmdet.bank import open_bank
from terse_aug_mmdet.batch import PARCEL, PathWithCutouts
from terse_aug_mmdet.settings import HOOK_ONLY, checked_policy, terse_settings


@TRANSFORMS.register_module()
class TersePaste(BaseTransform):
    """Draws and decodes the cut-outs of an image in the worker; :class:`TerseHook` pastes them, on the model's device.

    Required keys: ``img``. Modified keys: ``img_path`` (the same name, with the cut-outs attached, so that they pass
    ``PackDetInputs``). Added keys: ``terse_parcel``, for pipelines whose ``meta_keys`` name it.

    Place it anywhere between the loading and the packing; after ``Mosaic``, ``MixUp`` and whatever else makes one image
    of several. Where it is left out, the hook reads the cut-outs itself.

    Args:
        bank: path of the bank, as the hook has it.
        policy: as the hook has it.
        seed: mixed with the workers' own seeds; by default torch's, which the runner has set.
        enabled: without it the transform does nothing.
        classes: the data set's class names; needed with ``drop_unknown_classes`` only.
        drop_unknown_classes: as the hook has it.
        settings: of :class:`terse_aug.TerseConfig`, as the hook has them; those of the hook alone are passed over.

    Raises:
        ValueError: the bank cannot be opened, or a setting is unknown or outside its range.
    """

    def __init__(
        self,
        bank: str,
        policy: str = "critic",
        seed: int | None = None,
        enabled: bool = True,
        classes: Any = None,
        drop_unknown_classes: bool = False,
        **settings: Any,
    ) -> None:
        own = terse_settings({name: value for name, value in settings.items() if name not in HOOK_ONLY})
        self._bank = str(bank)
        self._cutouts: ForegroundLoader | None = None
        checked_policy(policy)
        if enabled:
            # The runner has seeded torch by its own seed.
            seed = torch.initial_seed() % 2**63 if seed is None else seed
            self._cutouts = ForegroundLoader(open_bank(bank, classes, drop_unknown_classes), policy, seed=seed, **own)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach cut-outs.

        Raises:
            ValueError: the image has not been loaded yet, or the results are packed already.
        """
        if "img" not in results:
            place = "before PackDetInputs" if "inputs" in results else "after LoadImageFromFile"
            raise ValueError(f"TersePaste has to stand {place} in the pipeline; it met {sorted(results)}")
        if self._cutouts is None:
            return results
        sample = self._cutouts()
        path = PathWithCutouts(results.get("img_path") or "")
        path.sampled_foregrounds = sample
        results["img_path"], results[PARCEL] = path, sample
        return results

    def __repr__(self) -> str:
        return f"TersePaste(bank={self._bank!r})"
