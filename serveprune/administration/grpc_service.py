from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import unquote

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from serveprune.administration.administration import Administration
from serveprune.administration.operation import AdminOperation
from serveprune.administration.operator import operator_of
from serveprune.administration.refusals import Refusals
from serveprune.errors import Code, Internal, InvalidArgument, ServePruneError
from serveprune.frontends.authorization import Authorization
from serveprune.frontends.grpc.methods import UnaryMethods
from serveprune.frontends.grpc.pb import serveprune_admin_pb2 as pb
from serveprune.frontends.grpc.runtime import RpcMethodHandler, ServicerContext

SERVICE: str = pb.DESCRIPTOR.services_by_name["AdminService"].full_name

_REQUESTS: Mapping[str, tuple[AdminOperation, type[Message], type[Message]]] = {
    "GetConfig": (AdminOperation.CONFIG, pb.GetConfigRequest, pb.ConfigStatus),
    "ReloadConfig": (AdminOperation.RELOAD, pb.ReloadConfigRequest, pb.ConfigStatus),
    "ListRollouts": (AdminOperation.ROLLOUTS, pb.ListRolloutsRequest, pb.ListRolloutsResponse),
    "GetRollout": (AdminOperation.ROLLOUT, pb.GetRolloutRequest, pb.Rollout),
    "PauseRollout": (AdminOperation.PAUSE, pb.MoveRolloutRequest, pb.Rollout),
    "ResumeRollout": (AdminOperation.RESUME, pb.MoveRolloutRequest, pb.Rollout),
    "PromoteRollout": (AdminOperation.PROMOTE, pb.MoveRolloutRequest, pb.Rollout),
    "AbortRollout": (AdminOperation.ABORT, pb.MoveRolloutRequest, pb.Rollout),
    "ListRolloutChanges": (AdminOperation.CHANGES, pb.ListRolloutChangesRequest, pb.ListRolloutChangesResponse),
}


class AdminGrpcService:
    """The methods of ``serveprune.admin.v1.AdminService``."""

    def __init__(self, administration: Administration, authorization: Authorization, refusals: Refusals) -> None:
        self._administration = administration
        self._authorization = authorization
        self._refusals = refusals

    def handlers(self, methods: UnaryMethods, *, pool: ThreadPoolExecutor) -> dict[str, RpcMethodHandler]:
        """Return the handlers of all methods by name."""
        return {
            name: methods.handler(
                partial(self._answer, operation, response),
                request=request,
                pool=pool,
                on_rejected=partial(self._count_rejected, operation),
                authorization=self._authorization,
                on_refused=partial(self._note_refused, f"{SERVICE}/{name}"),
            )
            for name, (operation, request, response) in _REQUESTS.items()
        }

    def _answer(
        self, operation: AdminOperation, response: type[Message], request: Any, context: ServicerContext
    ) -> Message:
        failure: ServePruneError | None = Internal("unexpected failure")
        try:
            _check_fields(request)
            document = self._document(operation, request, peer=_peer(context))
            # A field that the protocol does not have yet is none of the caller's concern.
            message = ParseDict(document, response(), ignore_unknown_fields=True)
            failure = None
            return message
        except ServePruneError as error:
            failure = error
            raise
        finally:
            self._administration.count(operation, failure)

    def _document(self, operation: AdminOperation, request: Any, *, peer: str) -> dict[str, Any]:
        asked = self._administration
        without_arguments: Mapping[AdminOperation, Callable[[], dict[str, Any]]] = {
            AdminOperation.CONFIG: asked.config,
            AdminOperation.ROLLOUTS: asked.rollouts,
            AdminOperation.CHANGES: asked.changes,
        }
        if operation in without_arguments:
            return without_arguments[operation]()
        if operation is AdminOperation.ROLLOUT:
            return asked.rollout(request.model)
        is_reload = operation is AdminOperation.RELOAD
        operator = operator_of({"who": request.who, "why": request.why}, where="request", needs_name=not is_reload)
        if not is_reload:
            return asked.act(operation, request.model, operator, peer=peer)
        document, error = asked.reload(operator, peer=peer)
        if error is not None:
            raise error
        return document

    def _count_rejected(self, operation: AdminOperation, code: Code) -> None:
        self._administration.count(None if code is Code.UNAUTHENTICATED else operation, code)

    def _note_refused(self, method: str, context: ServicerContext, refusal: ServePruneError) -> None:
        self._refusals.note(refusal, protocol="grpc", peer=_peer(context), asked=method)


def _check_fields(request: Message) -> None:
    """Refuse a message with fields that this server does not know: they may change what its sender means."""
    unknown = UnknownFieldSet(request)
    if len(unknown):
        raise InvalidArgument(
            f"expected a {request.DESCRIPTOR.full_name} of this server's version, got one with an unknown field "
            f"{unknown[0].field_number}"
        )


def _peer(context: ServicerContext) -> str:
    # `ipv4:127.0.0.1:1234`, or `ipv6:%5B::1%5D:1234`.
    return unquote(str(context.peer())).removeprefix("ipv4:").removeprefix("ipv6:")[:100]
