"""``model-index.yml``, in the form of OpenMMLab's repositories, has every config of MMDetection's example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[1]
EXAMPLE = "examples/mmdet"


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_index_imports_the_metafile() -> None:
    assert load("model-index.yml") == {"Import": [f"{EXAMPLE}/metafile.yml"]}


def test_every_config_is_listed_once_with_files_that_exist() -> None:
    metafile = load(f"{EXAMPLE}/metafile.yml")
    (collection,) = metafile["Collections"]
    assert (ROOT / collection["README"]).is_file()
    configs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / EXAMPLE / "configs").glob("*.py"))
    assert sorted(model["Config"] for model in metafile["Models"]) == configs
    for model in metafile["Models"]:
        assert model["Name"] == Path(model["Config"]).stem
        assert model["In Collection"] == collection["Name"]
        assert model["Metadata"]["Training Data"] == "Penn-Fudan"
        for result in model.get("Results", []):
            assert set(result) == {"Task", "Dataset", "Metrics"}
            assert result["Metrics"]
