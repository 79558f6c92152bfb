"""Registers synthetic faces as an image source."""

from margrave.data.contract import SOURCES
from margrave.synthetic import SyntheticFaces

SOURCES.register("synthetic")(SyntheticFaces)
