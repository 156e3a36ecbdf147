"""Matrices: positive definite systems, low-rank factors in closed form, and how they are stored."""
