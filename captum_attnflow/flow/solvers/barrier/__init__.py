"""How :class:`BarrierSolver` works: from networks to the central path, and onto it.

- ``solver``: the solver and its options, which implementation it chooses, and the whole
  of a solve. It starts near the central path, follows it by predictor-corrector steps
  on flows and potentials, and ends on potentials alone.
- ``central_path``: what stays fixed, what a step changes, and ``EdgePasses``, the work
  on the edges; the start and the steps.
- ``laplacian``: linear systems, and the last steps, on potentials.
- ``torch_passes`` and ``numba_passes``: two implementations of the passes over the
  edges, for any device and compiled for CPUs. The latter's kernels are ``numba_edges``
  and, for linear systems, ``numba_gradients`` and ``numba_factors``.
- ``compilation``: whether these are compiled, and a process that compiles meanwhile.
"""

from captum_attnflow.flow.solvers.barrier.solver import BarrierSolver

__all__ = ["BarrierSolver"]
