"""How :class:`BarrierSolver` works: a network in flat arrays, and steps over it.

- ``problem``: what stays fixed and what a step changes, an entry an edge.
- ``start``: where the steps begin.
- ``newton``: one step after the other. It leaves the edges to ``EdgePasses``
  (``passes``), and linear systems to a ``Laplacian`` (``laplacian``, ``cholesky``).
- ``by_torch`` and ``by_numba``: two implementations of the passes over the edges and of
  the iterative solver, for any device and compiled for CPUs.
- ``workspace``: memory for all of it.
"""
