"""Serve neural networks at several compression tiers, made and measured on the fly."""

__version__ = "0.1.0"
