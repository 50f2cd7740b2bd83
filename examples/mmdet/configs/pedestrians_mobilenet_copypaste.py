# pedestrians_mobilenet.py with MMDetection's own CopyPaste: up to three objects of another image, at their own place.
_base_ = "pedestrians_mobilenet.py"

loading = _base_.train_pipeline[:-1]
loading[1]["with_mask"] = True
# CopyPaste wants images of one size; with bars of the mean colour, which is what batches are padded with otherwise.
loading.append(dict(type="Pad", size=(448, 448), pad_val=dict(img=(104, 116, 124))))
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="MultiImageMixDataset",
        dataset=dict(
            type="CocoDataset",
            ann_file=_base_.annotations + "train_20.json",
            data_prefix=dict(img=_base_.images),
            metainfo=_base_.classes,
            pipeline=loading,
        ),
        pipeline=[dict(type="CopyPaste", max_num_pasted=4), dict(type="PackDetInputs")],
    )
)
