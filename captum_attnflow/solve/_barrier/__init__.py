"""How :class:`BarrierSolver` works: a network in flat arrays, and steps over it.

- ``problem``: what stays fixed and what a step changes, an entry an edge.
- ``start``: where the steps begin.
- ``newton``: one step after the other. It leaves the edges to ``EdgePasses``
  (``passes``), and linear systems to a ``Laplacian`` (``laplacian``, ``cholesky``).
- ``by_torch``: the passes over the edges and the iterative solver, for any device.
- ``workspace``: memory for all of it.
"""
