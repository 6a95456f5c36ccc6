"""Images and their labels, through TFDS without TensorFlow and without downloads.

Read `loading` first: it reads a data set and standardizes it. `digits` and `tiny_imagenet` are data sets that TFDS
does not have, `augmentation` draws random crops and mirror images for training.
"""
