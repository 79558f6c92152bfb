"""Synthetic faces with ground truth: a parametric painter, which imports nothing of data."""

from margrave.synthetic.faces import SyntheticFaces

__all__ = ["SyntheticFaces"]
