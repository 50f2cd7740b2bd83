"""terse-aug in Lightning: a callback for ``lightning.pytorch.Trainer``.

::

    terse = Terse(ForegroundBank.open("people.bank"), model=module.detector, classes=["person"], seed=0)
    Trainer(callbacks=[TerseCallback(terse)]).fit(module, loader)
"""

from terse_aug_lightning.callback import TerseCallback

__all__ = ["TerseCallback"]
