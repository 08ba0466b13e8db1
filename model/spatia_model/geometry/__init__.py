"""Rigid motions, cameras, point splatting and visibility."""
