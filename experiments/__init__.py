"""The experiments: data, networks, training, sweeps, figures and the command line."""
