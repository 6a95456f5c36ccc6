"""The computations behind `scores` and `masks`.

`flows`: the share of a path sum that goes through each weight (SynFlow, PX).
`losses`: gradients and Hessian-vector products of a loss over labelled batches (SNIP, GraSP), and the gradient, by the
    initial weights, of the loss after steps of training (ProsPr).
`selection`: a mask of the largest scores of all, or of every m in a row, without sorting; `host_selection`: the largest
    of all in host memory, by NumPy.
`apportionment`: how many weights a density keeps, in all and of each layer ("uniform" and "erk").
`freezing`: optax optimizers that leave pruned weights at 0.
`files`: masks saved to files, one bit per weight.
"""
