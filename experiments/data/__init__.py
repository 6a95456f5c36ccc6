"""Images and their labels, through TFDS without TensorFlow and without downloads, or of one's own.

Read `loading` first: it reads a data set and standardizes it. `arrays` reads and checks data of one's own. `digits` and
`tiny_imagenet` are data sets that TFDS does not have, `augmentation` draws random crops and mirror images for training.
"""
