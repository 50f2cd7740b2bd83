"""``terse-aug preview`` of policy ``matched``, which learns from the boxes of the images."""

from __future__ import annotations

import re

import torch
from test_preview import Data, data  # noqa: F401 - a fixture

from terse_aug import ForegroundBank, Terse


def test_matched_learns_from_the_boxes_of_the_images_or_has_a_state(data: Data) -> None:  # noqa: F811
    """People stand at the right, as high as they are wide."""
    own = {"bbox": [90, 20, 25, 25], "segmentation": [[90, 20, 115, 20, 115, 45, 90, 45]]}
    data.content["annotations"] = [data.annotation(number % 3, id=number + 1, **own) for number in range(24)]
    data.write()
    settings = ["--classes", "person", "--paste-probability", "1", "--scale", "0.1", "3", "--decoys", "0", "0"]
    page = data.page("--policy", "matched", "--sampler", "hardness", *settings)
    assert "matched (learned from up to 64 of the images)" in page
    places = [float(own) for own in re.findall(r"translate_x ([\d.]+)", page)]
    assert len(places) > 2
    assert min(places) > 0.7
    terse = Terse(ForegroundBank.open(data.bank), "matched")
    torch.save(terse.state_dict(), "matched.pt")
    assert "matched, state matched.pt" in data.page("--state", "matched.pt", "--count", "1")
