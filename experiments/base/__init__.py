"""What every other package of the experiments may use. Imports none of them.

Read in any order: `errors` (InputError, the one error for bad input), `names` (methods, networks, quantities), `seeds`
(PRNG keys), `batching` (many networks in one program), `files` (writing in one step), `versions`, and `wording`
(numbers in sentences).
"""
