"""What every other package of the experiments may use. Imports none of them.

Read in any order: `errors` (InputError, the one error for bad input), `names` (methods, networks, quantities),
`variants` (of methods: sanity checks), `seeds` (PRNG keys), `batching` (many networks in one program), `files` (writing
so that a kill loses nothing), `versions`, `origin` (versions, device and source tree of a run), `sources` (hashes of
source files), `ending` (signals), `compile_cache` (compiled programs on the disk), `own` (functions and files of the
user), `options` (those that a command does not have), `shards` (parts of a study), and `wording` (numbers in
sentences).
"""
