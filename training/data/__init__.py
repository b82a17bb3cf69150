"""Data sets in their public layouts, and the loaders that shuffle, augment and batch them.

`dataset` is the one type that every reader returns, `cifar10` and `imagefolder` are readers, `catalog`
chooses one by the recipe, `augment` and `loaders` make batches.
"""
