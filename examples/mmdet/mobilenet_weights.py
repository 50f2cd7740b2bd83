"""Convert torchvision's weights of MobileNetV2 for MMDetection's backbone.

``python mobilenet_weights.py mobilenet_v2.pth --out data/mobilenet_v2.pth``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mmdet.models.backbones import MobileNetV2


def main() -> None:
    """Both networks have the same layers in the same order; the classifier is left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="a state dict of torchvision.models.mobilenet_v2")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    given = torch.load(args.weights, map_location="cpu", weights_only=True)
    features = [value for name, value in given.items() if name.startswith("features.")]
    network = MobileNetV2(out_indices=(7,))
    wanted = network.state_dict()
    found = dict(zip(wanted, features, strict=True))
    network.load_state_dict(found)  # refuses other shapes
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, args.out)


if __name__ == "__main__":
    main()
