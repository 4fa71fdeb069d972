from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from serveprune.cli.self_test import self_test
from serveprune.config.model import ModelConfig
from serveprune.config.server import Address, ServerConfig
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.registry import Model, Registry
from serveprune.models.variant import VariantState
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec
from serveprune.server import Endpoints


class Texts:
    """A session that takes strings, for which no inputs can be made up."""

    inputs = outputs = (TensorSpec("s", Datatype.BYTES, (-1,)),)
    computes_in_caller = True

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        return [feeds["s"]]

    def close(self) -> None:
        return None


def test_model_whose_inputs_cannot_be_made_up_is_a_problem_and_the_others_are_tested() -> None:
    models = {}
    for name in ("texts", "words"):
        models[name] = Model(name, ModelConfig.model_validate({"source": {"onnx": "m.onnx"}}), default_tier="dense")
        instance = Instance(Texts(), identity=(name, "1", "dense"), batches=BatchSettings(4))
        models[name].update("dense", state=VariantState.READY, instance=instance)
    server: Any = SimpleNamespace(
        config=SimpleNamespace(server=ServerConfig()),
        registry=Registry(models.values()),
        controlplane=SimpleNamespace(tiers=lambda name, version: {"name": name, "tiers": []}),
    )
    nowhere = Address("127.0.0.1", 1)

    problems = self_test(server, Endpoints(nowhere, nowhere, nowhere))

    assert [problem.partition(":")[0] for problem in problems] == ["texts", "words"]
    assert all("input s takes strings, for which no example can be made up" in problem for problem in problems)
