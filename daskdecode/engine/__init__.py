"""The engine: numbers in, numbers out. Moments, Gram matrices, factors and solvers."""
