"""Synthetic faces with ground truth, painted by a parametric model that uses no real images."""

from margrave.synthetic.faces import SyntheticFaces

__all__ = ["SyntheticFaces"]
