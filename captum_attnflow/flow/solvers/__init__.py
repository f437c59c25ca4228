"""Solvers: a :class:`LayeredNetwork` in, certified flows out.

They know tensors and networks, never a model, a token or Captum. A new solver is a
frozen dataclass that derives from :class:`FlowSolver`, and a line in :data:`SOLVERS`.
"""

from captum_attnflow.flow.solvers.barrier import BarrierSolver
from captum_attnflow.flow.solvers.barrier.compilation import compile_kernels
from captum_attnflow.flow.solvers.base import (
    SOLVERS,
    DeferredFlow,
    FlowError,
    FlowSolution,
    FlowSolver,
    SolverName,
    SourceFlows,
    find_solver,
    solve_flow,
    solve_sources,
)
from captum_attnflow.flow.solvers.dinic import DinicSolver, SciPySolver
from captum_attnflow.flow.solvers.networkx_solver import NetworkXSolver

SOLVERS["barrier"] = BarrierSolver()
SOLVERS["dinic"] = DinicSolver()
SOLVERS["scipy"] = SciPySolver()
SOLVERS["networkx"] = NetworkXSolver()

__all__ = [
    "SOLVERS",
    "BarrierSolver",
    "DeferredFlow",
    "DinicSolver",
    "FlowError",
    "FlowSolution",
    "FlowSolver",
    "NetworkXSolver",
    "SciPySolver",
    "SolverName",
    "SourceFlows",
    "compile_kernels",
    "find_solver",
    "solve_flow",
    "solve_sources",
]
