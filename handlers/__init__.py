"""Hosts other than serveprune's own server. Each is thin: it speaks its host's language and calls the core.

Installed as `serveprune.handlers`.
"""
