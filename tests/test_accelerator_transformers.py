"""Batches of transformers on a device: their layout is read at once, and once only."""

from __future__ import annotations

import pytest
from frameworks import QUIET_TRANSFORMERS, need_transformers

need_transformers()
pytest.importorskip("simulated_accelerator", reason="this torch has no devices made in Python", exc_type=ImportError)
from simulated_accelerator import DEVICE, counted
from transformers_factories import TinyData, make_model, padding_processor

from terse_aug_transformers import TransformersAdapter, collate_detection
from terse_aug_transformers.batch import Layout, to_samples

pytestmark = QUIET_TRANSFORMERS


def test_the_layout_of_a_batch_is_read_at_once_and_handed_on() -> None:
    data = TinyData(padding_processor())
    batch = collate_detection([data[number] for number in range(4)])
    there = {name: batch[name].to(DEVICE) for name in ("pixel_values", "pixel_mask")}
    there["labels"] = [{name: value.to(DEVICE) for name, value in own.items()} for own in batch["labels"]]
    with counted() as counts:
        layout = Layout.of(there)
    assert counts.synchronisations == 1, str(counts)
    assert layout == Layout.of(batch)
    with counted() as counts:
        to_samples(there)
    assert counts.synchronisations == 2, str(counts)  # the other one is for the largest value of the boxes
    adapter = TransformersAdapter(make_model("DETR"))
    recorder = adapter.record_forward()
    with counted() as counts:
        adapter.begin_record(there, layout)
    assert counts.synchronisations == 0, str(counts)
    assert len(recorder.records) == 1
    recorder.close()
