"""Networks and sources of this folder can be named by import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
