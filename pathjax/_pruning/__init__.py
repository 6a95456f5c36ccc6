"""The computations behind `scores` and `masks`. The files do not depend on each other.

`flows`: the share of a path sum that goes through each weight (SynFlow, PX).
`losses`: gradients and Hessian-vector products of a loss over labelled batches (SNIP, GraSP).
`kernels`: which leaves are kernels, by name and shape.
`selection`: a mask of the largest scores, without sorting.
`apportionment`: how many weights each layer keeps when the total is given ("uniform" and "erk").
`freezing`: optax optimizers that leave pruned weights at 0.
`files`: masks saved to files, one bit per weight.
"""
