"""The computations behind `scores` and `masks`. The files do not depend on each other.

`flows`: the share of a path sum that goes through each weight (SynFlow, PX).
`losses`: gradients and Hessian-vector products of a loss over labelled batches (SNIP, GraSP).
`selection`: a mask of the largest scores, without sorting.
`apportionment`: how many weights each layer keeps when the total is given ("uniform" and "erk").
`files`: masks saved to files, one bit per weight.
"""
