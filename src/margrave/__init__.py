"""Face recognition with adaptive margins: train, evaluate and use face-embedding models."""

__version__ = "0.1.0"
