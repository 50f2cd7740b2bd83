# pedestrians.py with a small backbone and small images, for a machine without a GPU; weights: ../mobilenet_weights.py.
_base_ = "pedestrians.py"

norm = dict(type="BN", requires_grad=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type="MobileNetV2",
        out_indices=(1, 2, 4, 6),
        frozen_stages=1,
        norm_cfg=norm,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="data/mobilenet_v2.pth"),
    ),
    neck=dict(in_channels=[24, 32, 96, 320], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=500), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2]["scale"] = test_pipeline[1]["scale"] = (448, 320)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=200, val_interval=200)
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="MultiStepLR", by_epoch=False, milestones=[150], gamma=0.1),
]
