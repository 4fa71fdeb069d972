"""TorchServe as a host: a handler that serves a model's tiers, and how to package and run it."""
