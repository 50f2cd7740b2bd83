# pedestrians_mobilenet.py with terse-aug.
_base_ = "pedestrians_mobilenet.py"

custom_imports = dict(imports=["terse_aug_mmdet"])
terse = dict(bank="people.bank", policy=dict(type="critic"))

train_pipeline = _base_.train_pipeline
train_pipeline.insert(-1, dict(type="TersePaste", **terse))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
custom_hooks = [dict(type="TerseHook", image_interval=100, **terse)]
