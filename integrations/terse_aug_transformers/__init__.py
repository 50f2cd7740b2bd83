"""terse-aug in Hugging Face's transformers: a callback for ``Trainer``, and a collator.

::

    callback = TerseCallback("people.bank", image_processor=image_processor)
    Trainer(model, args, train_dataset=..., data_collator=collate_detection, callbacks=[callback]).train()
"""

from terse_aug_transformers.callback import TerseCallback
from terse_aug_transformers.collator import collate_detection
from terse_aug_transformers.model import TransformersAdapter

__all__ = ["TerseCallback", "TransformersAdapter", "collate_detection"]
