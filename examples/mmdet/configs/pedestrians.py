# Penn-Fudan's 20 training images with MMDetection's Faster R-CNN; JSON files: ../penn_fudan_to_coco.py.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"

images = "PennFudanPed/PNGImages/"
annotations = "data/"
classes = dict(classes=("person",))

model = dict(roi_head=dict(bbox_head=dict(num_classes=1)))

train_pipeline = [
    dict(type="LoadImageFromFile", backend_args=None),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(640, 448), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=None),
    dict(type="Resize", scale=(640, 448), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    dataset=dict(
        data_root="",
        ann_file=annotations + "train_20.json",
        data_prefix=dict(img=images),
        metainfo=classes,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root="",
        ann_file=annotations + "test.json",
        data_prefix=dict(img=images),
        metainfo=classes,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=annotations + "test.json")
test_evaluator = val_evaluator

train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=400, val_interval=400)
train_dataloader.update(sampler=dict(type="InfiniteSampler", shuffle=True), batch_sampler=None)
optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50)]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=20), checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=100)
)
log_processor = dict(by_epoch=False)
