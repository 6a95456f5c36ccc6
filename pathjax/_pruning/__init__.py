"""What scores and masks are made of.

`flows`: shares of open-gated path sums through each weight. `losses`: derivatives of a loss over labelled batches.
`selection`: the largest of many scores without sorting. `apportionment`: how many weights each layer keeps.
`files`: masks in files, one bit a weight.
"""
