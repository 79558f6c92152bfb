"""Importers of other projects' weights.

Each project has a module here. Importing this package imports all of them, which registers their
layouts.
"""

import importlib
import pkgutil

from margrave.models.contract import State
from margrave.models.importers.contract import LAYOUTS, Importer, Names
from margrave.models.importers.conversion import convert, detect_layout, import_for_network

__all__ = [
    "LAYOUTS",
    "Importer",
    "Names",
    "State",
    "convert",
    "detect_layout",
    "import_for_network",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
