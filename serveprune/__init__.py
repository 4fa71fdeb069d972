"""Serve neural networks at several compression tiers, made and measured on the fly."""

import os

__version__ = "0.1.0"

# ONNX Runtime reports its use over the network, and keeps a file `.ses` among the temporary ones, unless this is set
# before it is imported, by whichever module comes first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
