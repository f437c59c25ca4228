"""How :class:`BarrierSolver` works: from networks to the central path, and onto it.

- ``central_path``: the whole of a solve.
- ``problem``: what stays fixed and what a step changes, an entry an edge.
- ``start``: where the steps begin.
- ``newton``: one step after the other, on flows and potentials. It leaves the edges to
  ``EdgePasses`` (``passes``), and linear systems to a ``Laplacian`` (``laplacian``,
  ``cholesky``).
- ``dual``: the last steps, on potentials alone, from which ``ClosedForm``
  (``closed_form``) has the flows.
- ``by_torch`` and ``by_numba``: two implementations of the passes over the edges, of
  the closed form and of the iterative solver, for any device and compiled for CPUs;
  ``implementation`` chooses.
- ``undisturbed``: what no signal may end halfway.
- ``workspace``: memory for all of it.
"""
