"""The public names are those of DESIGN.md section 4, each documented with an example that runs, and light to import."""

import functools
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pathjax

MODULES = sorted(module.name for module in pkgutil.iter_modules(pathjax.__path__) if not module.name.startswith("_"))

# parameters in order; those after * are keyword-only, and a function may have more of these if they have defaults
SIGNATURES = {
    "paths.log_path_norm": "apply, params, x_like, *, q, mask",
    "paths.log_path_count": "apply, params, x_like, *, mask",
    "paths.path_sum": "apply, params, x, *, q, gates, mask",
    "paths.log_data_gram": "apply, params, x1, x2, *, mask",
    "enumeration.enumerate_paths": "apply, params, x_like, *, limit",
    "enumeration.path_values": "paths, params",
    "enumeration.path_jacobian": "paths, params",
    "enumeration.path_activations": "paths, apply, params, x",
    "enumeration.path_kernel": "paths, params",
    "path_kernel.path_kernel": "apply, params, x_like, *, mask, where, outputs",
    "path_kernel.PathKernel.matvec": "self, tree",
    "path_kernel.PathKernel.diagonal": "self",
    "path_kernel.PathKernel.log_diagonal": "self",
    "path_kernel.PathKernel.trace": "self",
    "path_kernel.PathKernel.log_trace": "self",
    "path_kernel.top_eigenpairs": "kernel, rank, *, key",
    "path_kernel.spectral_density": "kernel, *, order, samples, key",
    "path_kernel.SpectralDensity.estimate": "self, function",
    "path_kernel.SpectralDensity.estimate_from_logs": "self, function",
    "path_kernel.SpectralDensity.grid": "self, points, *, width",
    "path_kernel.SpectralDensity.broadened": "self, log_eigenvalues, *, width",
    "path_kernel.leaf_shares": "pairs",
    "path_kernel.log_determinant": "kernel, epsilon, *, key",
    "path_kernel.effective_rank": "kernel, *, key",
    "path_kernel.condition_number": "kernel, *, key",
    "path_kernel.smallest": "kernel, *, key",
    "path_kernel.log_smallest": "kernel, *, key",
    "path_kernel.cosine": "left, right, *, key",
    "path_kernel.change_and_cosine": "initial, kernel, *, key",
    "path_kernel.relative_change": "initial, kernel, *, key",
    "path_kernel.overlap": "left, left_pairs, right, right_pairs",
    "ntk.empirical": "apply, params, x1, x2, *, mask, method, batch_size, mesh",
    "ntk.empirical_trace": "apply, params, x1, x2, *, mask, method, batch_size, mesh",
    "ntk.empirical_diagonal": "apply, params, x1, x2, *, mask, method, batch_size, mesh",
    "ntk.infinite": "kernel_fn, x1, x2",
    "ntk.operator": "apply, params, x, x2, *, mask, batch_size",
    "ntk.Operator.matvec": "self, vector",
    "ntk.Operator.trace": "self",
    "ntk.trace_estimate": "kernel, *, key, samples",
    "ntk.norm_estimate": "kernel, *, key, samples",
    "ntk.top_eigenpairs": "kernel, rank, *, key",
    "factorization.factorize": "apply, params, x, *, rank, key, mask",
    "factorization.recompose": "factorization",
    "factorization.layer_kernels": "apply, params, x, *, mask",
    "factorization.bounds": "ntk, kernel, data_gram, *, key",
    "factorization.alignment": "factorization, ntk, *, rank",
    "factorization.kernel_target_alignment": "kernel, labels, *, centered",
    "dynamics.linearized": "ntk, outputs, targets, times, *, learning_rate, flow, test_ntk, test_outputs",
    "dynamics.linearized_loss": "ntk, outputs, targets, times, *, learning_rate, flow",
    "dynamics.linearized_cross_entropy": "ntk, outputs, labels, times, *, learning_rate, test_ntk, test_outputs",
    "dynamics.trajectory": "ntk, outputs, targets, times, *, learning_rate, flow, test_ntk, test_outputs",
    "dynamics.data_free_loss": "eigenvalues, weights, times, *, learning_rate",
    "dynamics.expected_loss": "ntk, times, *, learning_rate, nngp, target_means, target_variances, flow",
    "dynamics.critical_learning_rate": "ntk",
    "dynamics.time_to_loss": "times, losses, level",
    "dynamics.kernel_change": "initial, kernel",
    "dynamics.kernel_distance": "initial, kernel",
    "dynamics.linearization_error": "outputs, predicted",
    "scores.magnitude": "params",
    "scores.random": "params, *, key",
    "scores.snip": "apply, params, batches, *, loss, state, prunable",
    "scores.grasp": "apply, params, batches, *, loss, temperature",
    "scores.synflow": "apply, params, x_like",
    "scores.synflow_l2": "apply, params, x_like, *, factor",
    "scores.synflow_data": "apply, params, inputs, *, q",
    "scores.path_kernel_trace": "apply, params, x_like",
    "scores.mean_field_trace": "apply, params, x_like, *, inputs, input_moments, second_moments, batch_size",
    "scores.px": "apply, params, inputs",
    "scores.ntk_sap": "apply, params, x_like, *, init, key, epsilon, repeats",
    "scores.force": "apply, params, batches, *, mask, loss",
    "scores.prospr": "apply, params, batches, *, steps, learning_rate, loss, state, has_aux, prunable, mask",
    "masks.from_scores": "scores, *, density, scope, prunable",
    "masks.n_of_m": "scores, *, n, m, axis, prunable, within, stacked",
    "masks.is_kernel": "key_path, leaf",
    "masks.apply_mask": "mask, params",
    "masks.density": "mask",
    "masks.kept_counts": "params, *, density, scope, prunable",
    "masks.keep_largest": "scores, counts, *, scope, prunable, within",
    "masks.overlap": "left, right, *, prunable",
    "masks.shuffle": "mask, *, key, prunable",
    "masks.invert": "scores",
    "masks.reinitialize": "init, mask, *, key",
    "masks.save": "path, mask",
    "masks.load": "path, like",
    "masks.freeze": "optimizer, mask",
    "connectivity.effective_mask": "apply, params, x_like, *, mask, state, biases, prunable",
    "connectivity.connectivity": "apply, params, x_like, *, mask, state, prunable",
    "pruning.prune": "score, params, *, density, rounds, schedule, scope, key, revive",
    "pruning.lottery_ticket": "train, params, *, steps, density, rewind, pruned, scope, key, reinitialize",
    "pruning.densities": "*, density, rounds, schedule",
    "transfer.neural_tangent_transfer": "apply, params, inputs, *, density, steps, key, optimizer",
    "isometry.jacobian_singular_values": "apply, params, x, *, mask",
    "isometry.layer_singular_values": "params, *, mask, spatial, prunable",
    "isometry.summary": "singular_values",
}


def find(name):
    """What `module.name` stands for, or None if it is not there."""
    module, *members = name.split(".")
    if module not in MODULES:
        return None
    start: Any = importlib.import_module(f"pathjax.{module}")
    return functools.reduce(lambda at, member: getattr(at, member, None), members, start)


def parameters(function):
    """(names of the positional parameters, those of the keyword-only ones, those of them with a default)."""
    found = inspect.signature(function).parameters.values()
    named = [parameter for parameter in found if parameter.kind is parameter.KEYWORD_ONLY]
    return (
        [parameter.name for parameter in found if parameter.kind is not parameter.KEYWORD_ONLY],
        {parameter.name for parameter in named},
        {parameter.name for parameter in named if parameter.default is not parameter.empty},
    )


def public_names():
    """`module.name` for all that the public modules list."""
    modules = {module: importlib.import_module(f"pathjax.{module}") for module in MODULES}
    return [f"{module}.{name}" for module, source in modules.items() for name in getattr(source, "__all__", ())]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_that_of_the_design(name):
    found = find(name)
    assert found is not None, f"pathjax.{name} is missing"
    positional, _, keywords = SIGNATURES[name].partition("*, ")
    found_positional, found_keywords, with_default = parameters(found)
    assert found_positional == [parameter for parameter in positional.split(", ") if parameter]
    assert found_keywords >= set(filter(None, keywords.split(", ")))
    assert with_default >= found_keywords - set(keywords.split(", "))


@pytest.mark.parametrize("module", MODULES)
def test_public_module_lists_its_names(module):
    assert module in pathjax.__all__
    assert getattr(pathjax, module).__doc__
    if module != "types":  # aliases for annotations, by their names
        assert getattr(pathjax, module).__all__ == sorted(getattr(pathjax, module).__all__)


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_documented_with_an_example(name):
    member = find(name)
    assert member is not None and "._" not in name
    if inspect.isfunction(inspect.unwrap(member)):
        assert ">>>" in (member.__doc__ or ""), f"pathjax.{name} has no doctest"
    elif inspect.isclass(member):
        assert member.__doc__, f"pathjax.{name} has no docstring"


# what a user of one function should not wait for
HEAVY = {"chex", "flax", "matfree", "matplotlib", "neural_tangents", "optax", "pandas", "scipy", "sklearn"}
HEAVY |= {"beartype", "experiments", "tensorflow", "tensorflow_datasets"}


def test_importing_pathjax_imports_little_beyond_jax():
    code = "import json, sys, jax; jax = {*sys.modules}; import pathjax; print(json.dumps([*{*sys.modules} - jax]))"
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    loaded = {name for name in json.loads(run.stdout) if name.split(".")[0] in HEAVY}
    assert not loaded
