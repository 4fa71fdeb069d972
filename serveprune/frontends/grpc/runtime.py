"""What grpcio calls its objects, for annotations.

It ships no types, and the stubs that others wrote know neither registered methods nor half of a call's methods.
"""

from typing import Any, TypeAlias

Server: TypeAlias = Any
ServicerContext: TypeAlias = Any
RpcMethodHandler: TypeAlias = Any
HandlerCallDetails: TypeAlias = Any
