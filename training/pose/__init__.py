"""Human pose: people of several data sets as one type, heatmaps, augmentation, metrics and the training of it all.

`people` is the type that the readers `lspet`, `mpii` and `coco` return, `loaders` and `augment` make batches of it,
`heatmaps` targets and loss, `metrics` and `oks` measure, `module` trains, `evaluate` measures a trained network.
"""
