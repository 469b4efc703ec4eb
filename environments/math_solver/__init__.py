"""Arithmetic and linear equations, answered in a box; or problems of your own from a JSONL file."""

from environments.math_solver.environment import MathSolver

__all__ = ["MathSolver"]
