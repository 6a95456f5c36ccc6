"""Mutation testing: break one formula, rule or check of pathjax at a time, and see whether the tests notice.

Each entry of `MUTANTS` replaces one line of one source file by a wrong one and names the tests that should fail. The
script copies the tree once, applies one mutation after the other to the copy, runs those tests alone, and prints
whether the mutant was killed (a test failed) or survived (all passed). Run it as `make mutants`, or

    python tests/mutants.py [--tree DIRECTORY] [--only NAME]

It exits with status 1 where a mutant survives, where a text to replace is not found exactly once, or where the tests of
a mutant cannot run at all.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

INTERPRETER, LINALG, NTK = "pathjax/_interpreter/", "pathjax/_linalg/", "pathjax/_ntk/"
PATH_KERNEL, PRUNING = "pathjax/_path_kernel/", "pathjax/_pruning/"


class Mutant(NamedTuple):
    """One wrong line: in `file`, `old` becomes `new`; pytest runs `tests`, which should see it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


LISTED = "tests/test_paths/test_listed.py"
RULES = "tests/test_paths/test_rules.py"
REFUSALS = "tests/test_paths/test_refusals.py"
EXTREMES = "tests/test_paths/test_extremes.py"
TWIN = "tests/test_path_kernel/test_listed.py"
SPECTRUM = "tests/test_path_kernel/test_spectrum.py"
NNX = "tests/test_frameworks/test_nnx.py"
FACTORS = "tests/test_factorization/test_listed.py"
LAYERWISE = "tests/test_ntk/test_layerwise.py"
LAYERS = "tests/test_ntk/test_layers.py"
DYNAMICS = "tests/test_dynamics/test_dynamics.py"
SELECTION = "tests/test_masks/test_selection.py"
WAYS = "tests/test_masks/test_ways_to_select.py"
N_OF_M = "tests/test_masks/test_n_of_m.py"
OPTIONS = "tests/test_scores/test_options.py"
PROSPR = "tests/test_scores/test_prospr.py"
ROUNDS = "tests/test_pruning/test_rounds.py"
LIVE = "tests/test_connectivity/test_connectivity.py"
EXPECTED = "tests/test_ntk/test_mean_field.py"
TRANSFER = "tests/test_transfer/test_neural_tangent_transfer.py"

MUTANTS = [
    # path rules: sums and products
    Mutant("a negation keeps the sign", INTERPRETER + "sums.py", "Constant(-1.0))", "Constant(1.0))",
           f"{RULES} -k 'spelling and absolute and where'"),
    Mutant("a difference is a sum", INTERPRETER + "sums.py", "context.algebra.scale(right, -1.0)", "right",
           f"{RULES} -k 'spelling and examples and one and by'"),
    Mutant("a quotient is a product", INTERPRETER + "sums.py", "lambda divisor: 1.0 / divisor, denominator.value",
           "lambda divisor: 1.0 * divisor, denominator.value", f"{RULES} -k 'spelling and sum and everything'"),
    Mutant("a power meets a weight once too often", INTERPRETER + "sums.py", "range(exponent - 1)", "range(exponent)",
           f"{RULES} -k test_powers_of_a_weight"),
    Mutant("products of activations pass", INTERPRETER + "sums.py", "if INPUT in shared:", "if False:",
           f"{REFUSALS} -k 'primitive_line and (attention or product)'"),
    Mutant("tied weights go unnoticed", INTERPRETER + "sums.py",
           "context.tied.update(shared)",
           "pass",
           f"{LISTED} -k 'path_kernel_equals and tied'"),
    Mutant("gathers may fill with a constant", INTERPRETER + "sums.py",
           "if np.isfinite(out_of_bounds) and out_of_bounds != 0:",
           "if False:", f"{REFUSALS} -k 'primitive_line and filling'"),
    Mutant("activations may be rounded", INTERPRETER + "sums.py",
           "not jnp.issubdtype(output.dtype, jnp.floating)", "False",
           f"{REFUSALS} -k 'primitive_line and integers'"),
    # path rules: gates
    Mutant("a tie goes to the first", INTERPRETER + "gates.py",
           "at_tie = 0.5",
           "at_tie = 1.0",
           "tests/test_paths/test_data_gram.py -k maximum_at_zero"),
    Mutant("a rule's own slope is turned round", INTERPRETER + "gates.py",
           "at_tie = 1.0 - slope if isinstance(left, Constant) else slope",
           "at_tie = 1.0 - slope", f"{RULES} {LISTED} -k '(slopes_at_a_tie) or (per_output and relu_at_zero)'"),
    Mutant("every winner of a tie passes whole", INTERPRETER + "gates.py",
           "slopes.append(wins / jnp.sum(wins, axis=axes, keepdims=True))", "slopes.append(wins)",
           f"{LISTED} -k 'per_output and maxout_at_ties'"),
    Mutant("max pooling takes the smallest", INTERPRETER + "gates.py", "else (jnp.argmax, -np.inf)",
           "else (jnp.argmin, -np.inf)", f"{LISTED} -k 'per_output and max_pool'"),
    Mutant("where takes the other branch", INTERPRETER + "gates.py", "_choose(context, if_true, if_false,",
           "_choose(context, if_false, if_true,", f"{LISTED} -k 'per_output and where_mlp'"),
    Mutant("a clamp opens on the wrong side", INTERPRETER + "gates.py", "return (real > 0).astype(real.dtype)",
           "return (real < 0).astype(real.dtype)", f"{RULES} -k 'spelling and clamp'"),
    Mutant("an absolute value has slope one", INTERPRETER + "gates.py", "_derivative(lax.abs, real)",
           "jnp.ones_like(real)", f"{LISTED} -k 'per_output and absolute_value'"),
    Mutant("thresholds other than zero pass", INTERPRETER + "gates.py",
           "if isinstance(value, Constant) and not _is_filled_with(value, 0.0):", "if False:",
           f"{REFUSALS} -k 'primitive_line and threshold'"),
    Mutant("clipping at a constant passes", INTERPRETER + "gates.py",
           "if isinstance(bound, Constant) and not _is_filled_with(bound, 0.0):", "if False:",
           f"{REFUSALS} -k 'primitive_line and (relu6 or clip)'"),
    # path rules: loops, mixed examples, unknown primitives
    Mutant("a listed loop forgets to run backwards", INTERPRETER + "loops.py",
           'reversed(order) if params["reverse"] else order', "order", f"{RULES} -k 'spelling and backwards'"),
    Mutant("a rolled loop forgets to run backwards", INTERPRETER + "loops.py", 'reverse=params["reverse"])',
           "reverse=False)", f"{RULES} -k 'spelling and backwards'"),
    Mutant("mixed examples pass", INTERPRETER + "placements.py",
           "if placement.axis in axes:",
           "if False:",
           f"{REFUSALS} -k 'primitive_line and batch'"),
    Mutant("a convolution over examples passes", INTERPRETER + "example_rules.py",
           "images.axis != numbers.lhs_spec[0]",
           "False", f"{REFUSALS} {RULES} -k '(primitive_line and examples) or where_examples_lie'"),
    Mutant("primitives without a rule are summed", INTERPRETER + "rules.py",
           "raise context.refuse(*REASONS.get(name, ANY_REASON))",
           "return sums.same", f"{REFUSALS} -k 'primitive_line and (tanh or softmax)'"),
    Mutant("a gate may be any function", "pathjax/paths.py",
           "if bool(jnp.any(differs)):",
           "if False:",
           f"{REFUSALS} -k 'gate or cannot'"),
    # lifting and its scale
    Mutant("normalizing loses the scale", INTERPRETER + "scaled.py",
           "_OF_ZEROS, exponent + shift) if",
           "_OF_ZEROS, exponent - shift) if",
           f"{LISTED} -k 'norms_and_counts and bias_free'"),
    Mutant("sums grow without being normalized", INTERPRETER + "lifting.py",
           "if growth > _GROWTH_LIMIT:",
           "if False:",
           f"{EXTREMES} -k sums_without_weights"),
    Mutant("constants join at the wrong scale", INTERPRETER + "lifting.py", "at_once(lambda a: a * 2.0**-bits, array)",
           "at_once(lambda a: a * 2.0**bits, array)", f"{EXTREMES} -k constants_before"),
    Mutant("what is joined is lowered by the wrong scale", INTERPRETER + "scaled.py",
           "whole(scaled.exponent) - exponent, form.whole",
           "exponent - whole(scaled.exponent), form.whole",
           f"{LISTED} -k 'norms_and_counts and residual'"),
    Mutant("both sides of a pair have the gates of the left", INTERPRETER + "lifting.py", "(params, right[None])]",
           "(params, left[None])]", "tests/test_paths/test_data_gram.py -k 'listed and leaky'"),
    Mutant("the mask is not applied to lifted weights", INTERPRETER + "lifting.py",
           "jnp.where(kept, phi(jnp.where(kept, leaf, 1)), 0)", "phi(leaf)",
           f"{LISTED} -k 'norms_and_counts and biased_mlp'"),
    Mutant("weights that are not finite pass", INTERPRETER + "lifting.py", "if not finite:", "if False:",
           "tests/test_path_kernel/test_parts.py -k not_finite"),
    # listing
    Mutant("a listing has no limit", "pathjax/enumeration.py", "if count > limit:", "if False:",
           "tests/test_enumeration/test_listing.py -k limit_names"),
    Mutant("listed sums pair the wrong entries", INTERPRETER + "listing.py",
           "np.concatenate([np.arange(a.size), np.arange(b.size)])",
           "np.concatenate([np.arange(a.size), np.arange(b.size)[::-1]])",
           "tests/test_enumeration/test_listing.py -k 'every_path and (residual_dense or biased)'"),
    # the Path Kernel and its twin
    Mutant("the twin is not rescaled", PATH_KERNEL + "twin.py",
           "leaf * power_of_two(shift, leaf.dtype)",
           "leaf",
           f"{TWIN} {LISTED} -k '(products_of_parts or path_kernel_equals) and biased'"),
    Mutant("the diagonal of tied weights lacks a term", PATH_KERNEL + "twin.py",
           "for position in kernel.network.tied(kernel.example) & kernel.rows:",
           "for position in ():",
           f"{LISTED} -k 'path_kernel_equals and tied'"),
    Mutant("the derivative is along the wrong weights", PATH_KERNEL + "twin.py",
           "direction = multiply(weights, vector)",
           "direction = multiply(right.params, vector)", f"{TWIN} -k 'products_of_parts and biased'"),
    Mutant("pruned weights keep their rows", PATH_KERNEL + "twin.py",
           "jnp.where(mask, leaf, 0) if position in kernel.rows", "leaf if position in kernel.rows",
           f"{LISTED} -k 'path_kernel_equals and bias_free'"),
    Mutant("a layer of zeros loses its derivatives", PATH_KERNEL + "twin.py",
           "lift(program, weights, kernel.example, phi=absolute_power(2), keep_zeros=True)",
           "lift(program, weights, kernel.example, phi=absolute_power(2), keep_zeros=False)",
           f"{LISTED} -k 'path_kernel_equals and residual_of_zeros'"),
    Mutant("the effective rank is upside down", PATH_KERNEL + "comparison.py",
           "key, samples), [-1.0])",
           "key, samples), [1.0])", f"{TWIN} -k 'functions_of_small and biased'"),
    Mutant("a cosine is not normalized", PATH_KERNEL + "comparison.py",
           "[-0.5, 1.0, -0.5]",
           "[-0.5, 1.0, 0.5]",
           f"{TWIN} -k 'functions_of_small and biased'"),
    Mutant("a change counts the cross term once", PATH_KERNEL + "comparison.py",
           "[1.0, -2.0, 1.0]",
           "[1.0, -1.0, 1.0]",
           f"{TWIN} -k 'functions_of_small and biased'"),
    # linear algebra
    Mutant("Lanczos stores half of its quotients", LINALG + "lanczos.py",
           "expansion.projection.at[:, j].set(along)",
           "expansion.projection.at[:, j].set(along / 2)",
           f"{SPECTRUM} -k 'lanczos_finds or residuals_are_within'"),
    Mutant("no new start is tried", LINALG + "lanczos.py",
           "lax.cond(starts_at_random, start, lambda: state.direction)",
           "state.direction", f"{SPECTRUM} -k repeated_eigenvalues"),
    Mutant("searches start from signs", PATH_KERNEL + "spectrum.py",
           "random_start=twin.random_normal", "random_start=twin.random_signs", f"{SPECTRUM} -k any_key"),
    Mutant("a large leaf hides the errors of a small one", PATH_KERNEL + "spectrum.py",
           "inside / lengths[rows.leaf][:, None]", "inside", f"{SPECTRUM} -k no_last_one"),
    Mutant("what is said to be known is believed", LINALG + "lanczos.py",
           "return _is_checked(state) & ~(jnp.max(expansion.residuals) <= allowed)",
           "return jnp.zeros((), bool)", "tests/test_lanczos -k is_refuted"),
    Mutant("pairs of the last layer are searched for", LINALG + "lanczos.py",
           "jnp.where(state.known_hold, known.rest(vector), vector)",
           "vector", "tests/test_lanczos -k known_pairs"),
    Mutant("inner products are added up one after another", LINALG + "krylov.py",
           "_PIECE = 2**13", "_PIECE = 2**30", "tests/test_lanczos -k inner_products"),
    Mutant("a missed tolerance is not said", LINALG + "eigenpairs.py",
           "if isinstance(pairs.confirmed, jax.core.Tracer) or bool(pairs.confirmed):",
           "if True:",
           f"{SPECTRUM} -k missed_tolerance"),
    Mutant("a standard error is a standard deviation", LINALG + "estimates.py", "/ math.sqrt(len(samples))", "",
           "tests/test_ntk/test_operator.py -k 'error_bars or stated'"),
    Mutant("what is left falls twice as fast", LINALG + "relaxation.py", "return jnp.exp(-_product(z, t))",
           "return jnp.exp(-2 * _product(z, t))", f"{DYNAMICS} -k matrix_exponential"),
    Mutant("the null space does not move", LINALG + "relaxation.py", "jnp.where(jnp.isinf(t), 0, t)",
           "jnp.zeros_like(t)", "tests/test_dynamics/test_test_points.py -k training_kernel_is_zero"),
    Mutant("a divided difference has the wrong end", LINALG + "relaxation.py",
           "-_flow_remaining(low, t) * quotient",
           "-_flow_remaining(high, t) * quotient", f"{DYNAMICS} -k gradients_equal_finite"),
    # the factorization
    Mutant("modes are scaled by the inverse eigenvalue", PATH_KERNEL + "spectrum.py",
           "eigenvalues, 1) ** -0.5, 0)",
           "eigenvalues, 1) ** -1.0, 0)",
           f"{FACTORS} -k 'recomposed and leaky'"),
    Mutant("traces count pruned weights", "pathjax/factorization.py", "restricted(kernel, gradient))", "gradient)",
           f"{FACTORS} -k 'traces and leaky'"),
    Mutant("bounds forget the scale of the trace", "pathjax/factorization.py",
           "log_trace_path_kernel=kernel.log_trace()",
           "log_trace_path_kernel=0.9 * kernel.log_trace()",
           f"{FACTORS} -k bounds_are_those"),
    Mutant("shares are not squared", "pathjax/factorization.py", "jnp.square(vectors.T @ modes)",
           "jnp.abs(vectors.T @ modes)", "tests/test_factorization/test_factorization.py -k alignment_splits"),
    Mutant("a kernel is centered along one axis", "pathjax/factorization.py",
           "return rows - jnp.mean(rows, axis=1, keepdims=True)", "return rows",
           "tests/test_factorization/test_factorization.py -k kernel_target"),
    # the Neural Tangent Kernel
    Mutant("scaling changes a product", NTK + "contractions.py",
           "cotangents=self.cotangents / scale", "cotangents=self.cotangents",
           f"{LAYERWISE} -k 'two_batches_in_chunks'"),
    Mutant("a contraction forgets the kept weights", NTK + "contractions.py",
           "a[None] * a2, kept)",
           "a[None] * a2, jnp.ones_like(kept))", f"{LAYERWISE} -k contractions_of_a_layer"),
    Mutant("compression drops kept weights", NTK + "contractions.py",
           "kept.any((0, 2)), kept.any((0, 1))",
           "kept.all((0, 2)), kept.any((0, 1))",
           f"{LAYERWISE} -k 'every_form and known and whole'"),
    Mutant("blocks are mirrored from the wrong chunk", NTK + "blocks.py",
           "np.where(is_with_first, first, last)",
           "np.where(is_with_first, first, first)",
           f"{LAYERWISE} -k contractions_of_a_layer"),
    Mutant("a mirrored block stands where its original does", NTK + "blocks.py",
           "mirror(product, 0), second, first)", "mirror(product, 0), first, second)",
           f"{LAYERWISE} -k every_number_of_chunks"),
    Mutant("a bias is no weight", NTK + "layers.py", "jnp.ones((*a.shape[:-1], 1)", "jnp.zeros((*a.shape[:-1], 1)",
           f"{LAYERS} -k every_bias"),
    Mutant("a bias is joined to a layer that is read twice", NTK + "uses.py", "if len(readers) == 1 else None",
           "if readers else None", f"{LAYERS} -k every_bias"),
    Mutant("paths from biases are dead", NTK + "layers.py",
           "jnp.sum(output.inputs) + jnp.sum(output.constants)", "jnp.sum(output.inputs)",
           f"{LAYERS} -k lie_on_no_path"),
    Mutant("a mirrored block keeps the order of its outputs", NTK + "blocks.py",
           "else jnp.swapaxes(swapped, axis + 2, axis + 3)", "else swapped", f"{LAYERWISE} -k every_number_of_chunks"),
    Mutant("a leaf that is used twice counts once", NTK + "uses.py", "sums[known] + part if known in sums else part",
           "part", f"{LAYERWISE} -k 'not_piecewise_linear and tied'"),
    Mutant("an operator forgets its mask", NTK + "operator.py",
           "params if kernel.mask is None else kept_weights(kernel.mask, params)",
           "params",
           "tests/test_ntk/test_operator.py -k products_are_those"),
    Mutant("the error of a norm is that of twice the root", NTK + "operator.py",
           "square.standard_error / (2 * jnp.where(is_zero, 1, norm))",
           "square.standard_error / jnp.where(is_zero, 1, norm)",
           "tests/test_ntk/test_operator.py -k error_bars_are_as_long"),
    Mutant("kernels that do not fit are begun", NTK + "memory.py",
           "if free is None or result + needed <= free:", "if True:",
           "tests/test_ntk/test_memory.py -k names_the_chunk"),
    Mutant("a singular kernel has a condition number", "pathjax/ntk.py",
           "is_singular = smallest <= rounding_error(eigenvalues, eigenvalues.size)",
           "is_singular = smallest < 0 * smallest", "tests/test_ntk/test_spectrum.py -k singular_within"),
    Mutant("a spectrum ascends", "pathjax/ntk.py",
           "_matrix.eigenvalues(kernel)[::-1]",
           "_matrix.eigenvalues(kernel)",
           "tests/test_ntk/test_spectrum.py -k squared_singular_values"),
    Mutant("networks that mix examples pass", "pathjax/_base/network.py",
           "size is not None and difference > epsilon(gap)", "False and difference > epsilon(gap)",
           "tests/test_ntk/test_empirical.py -k mixes_examples"),
    # dynamics
    Mutant("a loss is not halved", "pathjax/dynamics.py",
           "return 0.5 * jnp.sum(relaxation.remaining(",
           "return jnp.sum(relaxation.remaining(", "tests/test_dynamics/test_test_points.py -k loss_is_that"),
    Mutant("the data-free loss falls half as fast", "pathjax/dynamics.py",
           "jnp.exp(-2 * flow_times[:, None]",
           "jnp.exp(-flow_times[:, None]", f"{DYNAMICS} -k data_free_loss_is_exact"),
    Mutant("the expected loss falls half as fast", "pathjax/_linalg/relaxation.py",
           "matrix, moments, 2 * times)", "matrix, moments, times)",
           "tests/test_dynamics/test_expected_loss.py -k second_moments"),
    Mutant("the mean of the targets does not count", "pathjax/dynamics.py",
           "identity + jnp.square(target_means)", "identity + 0 * jnp.square(target_means)",
           "tests/test_dynamics/test_expected_loss.py -k without_chance"),
    Mutant("the critical rate is that of the smallest eigenvalue", "pathjax/dynamics.py",
           "2 / eigenvalues(ntk)[-1]", "2 / eigenvalues(ntk)[0]", f"{DYNAMICS} -k critical"),
    Mutant("a kernel distance is doubled", "pathjax/dynamics.py", "return 0.5 * jnp.sum((directions[0]",
           "return jnp.sum((directions[0]", "tests/test_dynamics/test_lazy.py -k measures_equal"),
    # scores
    Mutant("batches count alike whatever their size", PRUNING + "losses.py",
           "return loss * batch_length(x)", "return loss",
           "tests/test_scores/test_saliencies.py -k how_examples_are_batched"),
    Mutant("FORCE takes the gradient at the dense weights", "pathjax/scores.py",
           "kept_weights(mask, params), batches, loss=",
           "params, batches, loss=",
           "tests/test_scores/test_force.py -k weights_times_the_gradient"),
    Mutant("GraSP forgets the temperature of the Hessian", "pathjax/scores.py",
           "gradient, loss=at, temperature=temperature)",
           "gradient, loss=at)",
           f"{OPTIONS} -k grasp_is_weight"),
    Mutant("ProsPr trains pruned weights", PRUNING + "losses.py",
           "_stepped(weights[-1], _kept_part(kept, total),", "_stepped(weights[-1], total,",
           f"{PROSPR} -k pruned_weights_stay"),
    Mutant("ProsPr goes back through pruned weights", PRUNING + "losses.py",
           "product(before, _kept_part(kept, slopes),", "product(before, slopes,",
           f"{PROSPR} -k pruned_weights_stay"),
    Mutant("ProsPr goes through its steps in the wrong order", PRUNING + "losses.py",
           "in reversed(list(zip(weights[:-1], steps, strict=True))):",
           "in list(zip(weights[:-1], steps, strict=True)):",
           f"{PROSPR} -k derivative_by_the_mask"),
    Mutant("weights that diverge pass", "pathjax/scores.py",
           "if steps == 0 or is_sound is None or is_sound:", "if True:", f"{PROSPR} -k diverges"),
    Mutant("temperatures of zero pass", "pathjax/scores.py",
           "if value is not None and not value > 0:",
           "if False:",
           f"{OPTIONS} -k bad_arguments"),
    Mutant("the absolute factor is squared", "pathjax/scores.py",
           'None if factor == "squared" else',
           "None if True else",
           "tests/test_scores/test_flow.py -k absolute_factor"),
    Mutant("inputs are not raised to the power", PRUNING + "flows.py", "total + phi(batch).sum(axis=0)",
           "total + batch.sum(axis=0)", "tests/test_scores/test_flow.py -k data_shares"),
    Mutant("the trace's share is doubled", "pathjax/scores.py",
           "leaf * slope / 2, params, slopes)",
           "leaf * slope, params, slopes)", "tests/test_scores/test_path_forms.py -k trace_sums"),
    Mutant("PX ignores the data", PRUNING + "flows.py",
           "output if output_weights is None else output * output_weights.astype(output.dtype)",
           "output", "tests/test_scores/test_path_forms.py -k px_weighs"),
    Mutant("NTK-SAP takes the sum over examples", "pathjax/scores.py",
           "return dot(change, change) / batch_length(x)",
           "return dot(change, change)", f"{OPTIONS} -k ntk_sap_is"),
    Mutant("pruned weights compete for the trace", "pathjax/scores.py",
           "(leaf != 0) | (not may_prune(path, leaf))",
           "leaf == leaf",
           "tests/test_scores/test_path_forms.py -k drop_pruned"),
    Mutant("cross-entropy is a sum", "pathjax/scores.py", "jnp.mean(losses *", "jnp.sum(losses *",
           "tests/test_scores/test_saliencies.py -k mean_negative_log"),
    Mutant("all leaves draw from one key", "pathjax/scores.py",
           "for leaf_key, leaf in zip(keys, leaves, strict=True)\n    ]",
           "for leaf_key, leaf in zip([key] * len(leaves), leaves, strict=True)\n    ]",
           "tests/test_scores/test_saliencies.py -k random_scores_are"),
    Mutant("gates of the expected trace move", INTERPRETER + "rectified.py",
           "lax.stop_gradient if is_held else", "_as_it_is if is_held else",
           "tests/test_scores/test_mean_field_trace.py -k 'gates_held and average'"),
    Mutant("inputs without data are all ones", INTERPRETER + "mean_field.py",
           "algebra.drawn(x) if is_drawn", "Known(jnp.sqrt(x)[:, None], None) if is_drawn",
           "tests/test_scores/test_mean_field_trace.py -k 'independent and average'"),
    Mutant("weights that are held have derivatives", INTERPRETER + "mean_field.py",
           "tangent if is_trained else jnp.zeros_like(tangent)", "tangent",
           "tests/test_scores/test_mean_field_trace.py -k not_prunable"),
    Mutant("only whole chunks of examples are scored", PRUNING + "flows.py",
           "if whole < len(batch) else sums", "if False else sums",
           "tests/test_scores/test_mean_field_trace.py -k 'half_open and biased'"),
    # masks
    Mutant("the last of a tie is kept", PRUNING + "selection.py", "-jnp.arange(start, start + tie.size, dtype=integer)",
           "-jnp.arange(start, start + tie.size, dtype=integer)[::-1]", f"{WAYS} -k stable_sort"),
    Mutant("the last of a tie is kept in host memory", PRUNING + "host_selection.py",
           "ties[: kept - np.count_nonzero(chosen)]",
           "ties[::-1][: kept - np.count_nonzero(chosen)]",
           f"{SELECTION} -k first_of_equal"),
    Mutant("a misled sample is believed", PRUNING + "host_selection.py",
           "if not 0 <= wanted <= sum(map(len, places)):",
           "if False:",
           f"{WAYS} -k first_largest"),
    Mutant("pruned weights compete again", PRUNING + "selection.py",
           "ordinal if within is None else jnp.where(within[index], ordinal, lowest)",
           "ordinal",
           f"{SELECTION} -k within_is_never_left"),
    Mutant("the last of a tie in a group is kept", PRUNING + "selection.py",
           "(rival == groups) & (place < places)", "(rival == groups) & (place > places)",
           f"{N_OF_M} -k first_of_equal"),
    Mutant("groups fill up with pruned weights", PRUNING + "selection.py",
           "(ahead < n) & (groups > np.iinfo(integer).min)", "(ahead < n)", f"{N_OF_M} -k within_is_never_left"),
    Mutant("groups that do not fill the axis are cut anew", PRUNING + "selection.py",
           "    if shape[axis] % m:\n", "    if False:\n", f"{N_OF_M} -k no_multiple"),
    Mutant("NaN scores are ranked", PRUNING + "selection.py",
           "if not isinstance(ranking.finite, jax.core.Tracer) and not ranking.finite:",
           "if False:",
           f"{SELECTION} -k not_finite_name"),
    Mutant("densities above one pass", PRUNING + "selection.py",
           "if not 0.0 < density <= 1.0:",
           "if not 0.0 < density:",
           f"{SELECTION} -k out_of_range"),
    Mutant("masks need not be boolean", "pathjax/_base/trees.py", "if jnp.result_type(leaf) != jnp.bool_:", "if False:",
           f"{SPECTRUM} -k not_boolean"),
    Mutant("masks of another tree pass", "pathjax/_base/trees.py", "if structure != like_structure:", "if False:",
           "tests/test_masks/test_use.py -k another_tree"),
    Mutant("seats go by another divisor", PRUNING + "apportionment.py", "Fraction(2 * counts[leaf] + 1",
           "Fraction(2 * counts[leaf] + 2", "tests/test_masks/test_scopes.py -k seats_given"),
    Mutant("chance counts the wrong leaf size", "pathjax/masks.py",
           "expected + kept_by_a * (kept_by_b / max(jnp.size(a), 1))",
           "expected + kept_by_a * (kept_by_b / max(jnp.size(a) - 1, 1))",
           "tests/test_masks/test_comparisons.py -k expected_overlap"),
    Mutant("damaged files are read", PRUNING + "files.py", "if [int(leaf.sum()) for leaf in leaves] != members",
           "if [] and members", "tests/test_masks/test_files.py -k counts_that_disagree"),
    # pruning
    Mutant("the exponential schedule is linear", "pathjax/pruning.py", "density**share",
           "1.0 - (1.0 - density) * share", f"{ROUNDS} -k schedules_are"),
    Mutant("pruned weights return", "pathjax/pruning.py",
           "None if revive else kept_masks, scope=scope",
           "None, scope=scope", f"{ROUNDS} -k stays_pruned"),
    Mutant("tickets keep the containers of a model", "pathjax/pruning.py",
           "return in_own_containers((check_like(trained, params, name=\"train\"), state))",
           "return check_like(trained, params, name=\"train\"), state", f"{NNX} -k lottery"),
    Mutant("kernels change with their model", f"{INTERPRETER}traced.py",
           "self.state = in_own_containers(state)", "self.state = state", f"{NNX} -k kernel_stays"),
    Mutant("nodes of zeros count as resolved", PATH_KERNEL + "density.py", "residuals < nodes", "residuals >= 0",
           "tests/test_path_kernel/test_true_numbers.py -k resolved"),
    Mutant("kernels of other states are compared", PATH_KERNEL + "comparison.py",
           "if is_one_state is not None and not is_one_state:", "if False:", f"{SPECTRUM} -k different_states"),
    Mutant("other states give numbers while tracing", PATH_KERNEL + "comparison.py",
           "lambda leaf: jnp.where(is_one_state, leaf, jnp.nan)", "lambda leaf: leaf",
           f"{SPECTRUM} -k different_states"),
    Mutant("densities may rise", "pathjax/pruning.py", "if after > before:", "if False:", f"{ROUNDS} -k cannot_be"),
    Mutant("tickets rewind to the start", "pathjax/pruning.py", "itertools.repeat(early)", "itertools.repeat(params)",
           "tests/test_pruning/test_lottery.py -k rewind_to_step"),
    # connectivity, isometry, transfer, sums over pairs
    Mutant("what nothing reaches is live", INTERPRETER + "reach.py", "return (number > 0).astype(number.dtype)",
           "return (number >= 0).astype(number.dtype)", f"{LIVE} -k 'live_weights and biased'"),
    Mutant("every shortest branch is a shortcut", "pathjax/connectivity.py", "output.shortest - output.every",
           "output.shortest", f"{LIVE} -k told_apart"),
    Mutant("pruned biases live", "pathjax/connectivity.py", "alive | (bias & keep)", "alive | bias",
           f"{LIVE} -k 'live_weights and biased'"),
    Mutant("the distance to an isometry is not squared", "pathjax/isometry.py",
           "jnp.mean(jnp.square(values), axis=-1) - 1.0",
           "jnp.mean(values, axis=-1) - 1.0", "tests/test_isometry -k summary_is"),
    Mutant("frequencies mix inputs and outputs", "pathjax/isometry.py", "axes=range(len(window)))",
           "axes=range(1, 1 + len(window)))", "tests/test_isometry -k 'convolutions_have'"),
    Mutant("the kernel's weight is not read", "pathjax/transfer.py",
           "kernel_weight * kernel_error + output_error",
           "kernel_error + output_error", f"{TRANSFER} -k first_loss"),
    Mutant("masks are chosen too late", "pathjax/transfer.py", "step < steps - refresh", "step < steps",
           f"{TRANSFER} -k steps_and_masks"),
    Mutant("half of a Gram is not mirrored", "pathjax/paths.py",
           "return jnp.where(upper_half, table, jnp.swapaxes(table, 0, 1))",
           "return table", "tests/test_paths/test_data_gram.py -k symmetric_gram"),
    # the traced network, and windows
    Mutant("a rule that forgets to return is a gate", INTERPRETER + "rules.py", "if results is None:", "if False:",
           f"{RULES} -k forgets_to_return"),
    Mutant("an old trace of the network is handed out", INTERPRETER + "jaxpr.py",
           "jax.make_jaxpr(fresh, return_shape=True)", "jax.make_jaxpr(apply, return_shape=True)",
           "tests/test_tracing -k may_change"),
    Mutant("every product traces the network", INTERPRETER + "traced.py",
           "if key not in whole:", "if True:",
           "tests/test_tracing/test_calls.py -k 'at_most_once and snip'"),
    Mutant("evaluations call the user's function", INTERPRETER + "traced.py",
           "return self.program(x, params)(params, x)", "return self.apply(params, x)",
           "tests/test_ntk/test_traced.py -k 'kernels_call or compiled_kernels'"),
    Mutant("networks of other weights are one", INTERPRETER + "traced.py",
           "kept_for(apply, _Traces, structure, tuple(map(_type_of, leaves)))",
           "kept_for(apply, _Traces, structure, ())",
           "tests/test_ntk/test_traced.py -k 'function_of_any'"),
    Mutant("functions are one whatever they capture", "pathjax/_base/content.py",
           "tuple(captured), tuple(variables.items())",
           "tuple(variables.items())", "tests/test_tracing/test_kept.py -k 'capture_something or may_change'"),
    Mutant("global variables are not looked at", "pathjax/_base/content.py",
           "tuple(captured), tuple(variables.items())",
           "tuple(captured)", "tests/test_tracing/test_kept.py -k 'may_change'"),
    Mutant("a list counts as what it was", "pathjax/_base/content.py",
           "return self._entries(thing, map(self.read, thing))", "return self._entries(thing, [])",
           "tests/test_tracing/test_kept.py -k 'may_change'"),
    Mutant("large programs outlive their functions", "pathjax/_base/programs.py", "if read.size <= _SMALL and", "if",
           "tests/test_tracing/test_kept.py -k go_with"),
    Mutant("windows overlap by one", INTERPRETER + "windows.py", "(entries.shape[along] - (size - 1) * dilation - 1)",
           "(entries.shape[along] - (size - 1) * dilation)", "tests/test_paths/test_convolutions.py -k equal_to_jax"),
    # expected gates
    Mutant("values pass a gate as slopes do", INTERPRETER + "rectified.py",
           "jnp.where(is_self, covariance / 2, ramps(covariance, left, right))",
           "covariance * (0.5 - angle(covariance, left, right) / (2 * jnp.pi))",
           f"{EXPECTED} -k 'leaky_mlp and batches'"),
    Mutant("channels of one moment count once", INTERPRETER + "convolved.py",
           "kernels[1].size if is_once else 1", "1", f"{EXPECTED} -k 'neural_tangents and flattened'"),
    Mutant("the arctangent of an angle loses a digit of a coefficient", INTERPRETER + "gaussian.py",
           "432.88106049129027", "432.88206049129027", f"{EXPECTED} -k cho_and_saul"),
    Mutant("the arctangent takes the middle range for the steep one", INTERPRETER + "gaussian.py",
           "opposite > _TAN_3_8 * adjacent", "opposite > _MIDDLE * adjacent", f"{EXPECTED} -k cho_and_saul"),
    Mutant("a standard deviation of 0 has an infinite derivative", INTERPRETER + "gaussian.py",
           "jnp.where(is_positive, variance, 1)", "jnp.where(is_positive, variance, 0)",
           "tests/test_scores/test_mean_field_trace.py -k dead"),
    Mutant("two values behind gates have no product", INTERPRETER + "added.py",
           "left.cross + right.cross + across[0]", "left.cross + right.cross", f"{EXPECTED} -k constants"),
    Mutant("a gate keeps weights free", INTERPRETER + "routes.py",
           "return NO_WEIGHT._replace(depends=route.depends)", "return route",
           "tests/test_ntk/test_mean_field_refusals.py -k shared_behind_gates"),
]  # fmt: skip


class Verdict(NamedTuple):
    """What became of a mutant: "killed", "survived", or what kept its tests from running; and the seconds it took."""

    outcome: str
    seconds: float


def copy_of(tree: Path, to: Path) -> None:
    """Copy what git does not ignore of a tree, and link its environment."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=tree,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listing.split("\0")):
        if (tree / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, to / name)
    if (tree / ".venv").exists():
        (to / ".venv").symlink_to((tree / ".venv").resolve())


def misplaced(tree: Path, mutants: list[Mutant]) -> list[str]:
    """A line for each mutant whose text to replace is not in its file exactly once."""
    problems = []
    for mutant in mutants:
        file = tree / mutant.file
        count = file.read_text().count(mutant.old) if file.exists() else 0
        if count != 1:
            problems.append(f"{mutant.name}: {count} times in {mutant.file}: {mutant.old}")
    return problems


def verdict(tree: Path, mutant: Mutant) -> Verdict:
    """Apply a mutant to the tree, run its tests, and take it back."""
    file = tree / mutant.file
    original = file.read_text()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not long", "-p", "no:cacheprovider"]
    start = time.monotonic()
    file.write_text(original.replace(mutant.old, mutant.new))
    try:
        arguments = shlex.split(mutant.tests)
        run = subprocess.run([*command, *arguments], cwd=tree, check=False, capture_output=True, text=True)
    finally:
        file.write_text(original)
    outcomes = {0: "survived", 1: "killed", 5: "no test was selected"}
    outcome = outcomes.get(run.returncode, f"pytest ended with status {run.returncode}: {run.stdout[-500:]}")
    return Verdict(outcome, time.monotonic() - start)


def main() -> int:
    """Run the mutants that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="the tree whose copy is broken")
    parser.add_argument("--only", default="", help="only the mutants whose name has this in it")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if problems := misplaced(options.tree, chosen):
        print("These texts are not there exactly once:", *problems, sep="\n")  # noqa: T201
        return 1
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        copy_of(options.tree, copy)
        outcomes = []
        for mutant in chosen:
            outcome, seconds = verdict(copy, mutant)
            outcomes.append(outcome)
            print(f"{outcome:10} {seconds:6.1f} s  {mutant.name}", flush=True)  # noqa: T201
    killed = outcomes.count("killed")
    print(f"{killed} of {len(chosen)} mutants killed")  # noqa: T201
    return int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
