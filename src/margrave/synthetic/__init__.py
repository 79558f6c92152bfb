"""Synthetic faces with ground truth, painted by a parametric model; independent of data."""

from margrave.synthetic.faces import SyntheticFaces

__all__ = ["SyntheticFaces"]
