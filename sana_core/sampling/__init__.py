"""Time grids and solvers."""
