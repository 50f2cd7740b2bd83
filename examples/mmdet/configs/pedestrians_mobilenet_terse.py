# pedestrians_mobilenet.py with terse-aug.
_base_ = "pedestrians_mobilenet.py"

terse = dict(bank="people.bank", policy=dict(type="critic"))

train_pipeline = _base_.train_pipeline
train_pipeline.insert(-1, dict(type="terse_aug_mmdet.TersePaste", **terse))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
default_hooks = dict(terse=dict(type="terse_aug_mmdet.TerseHook", image_interval=100, **terse))
