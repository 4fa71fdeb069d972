"""Several versions of one model come and go."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from unit.serving.test_controlplane_changes import Changing, eventually, is_retired, is_retired_soon

from serveprune.config.changes import config_changes
from serveprune.config.root import ServePruneConfig
from serveprune.errors import NotFound
from serveprune.models.instance import Instance
from serveprune.models.registry import Model
from serveprune.oip.messages import ModelState


class Versioned(Changing):
    """A plane whose model `relu` has version 1, until it is told otherwise."""

    def serve(self, *versions: str, policy: Any = "latest", sources: Mapping[str, str] | None = None) -> None:
        """Serve these versions, of which number n multiplies by n but for those that `sources` give another number."""
        factors = {version: (sources or {}).get(version, version) for version in versions}
        model = {
            "versions": {version: {"source": {"onnx": str(self._graph(factors[version]))}} for version in versions},
            "version_policy": policy,
            "tiers": ["dense", "int8"],
        }
        before = self.served
        self.served = ServePruneConfig.model_validate(
            {"profiles": {"int8": self.builder.profile}, "models": {"relu": model}}
        )
        changes = config_changes(before, self.served)
        models = [Model(name, one, default_tier="dense") for (name, _), one in self.served.served().items()]
        self.control.apply(models, profiles=self.served.profiles, touched=changes.touched)

    def _graph(self, factor: str) -> Path:
        file = self.folder / f"times-{factor}.onnx"
        if not file.exists():
            values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
            constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [float(factor)])
            graph = helper.make_graph(
                [helper.make_node("Mul", ["x", "factor"], ["y"])], "times", values[:1], values[1:], [constant]
            )
            onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
        return file

    def answer(self, version: str | None = None, *, tier: str = "int8") -> float:
        instance = self.registry.get("relu", version=version).variants[tier].instance
        assert instance is not None
        return float(instance.run({"x": np.ones((1, 4), np.float32)})[0][0, 0])

    def instances(self, version: str) -> list[Instance]:
        variants = self.registry.get("relu", version=version).variants.values()
        return [variant.instance for variant in variants if variant.instance is not None]

    def index(self) -> dict[str, list[str]]:
        """Version -> the names under which it is listed as ready."""
        listed: dict[str, list[str]] = {}
        for entry in self.control.index(ready_only=True):
            assert entry.state is ModelState.READY
            listed.setdefault(entry.version, []).append(entry.name)
        return listed


@pytest.fixture
def plane(tmp_path: Path) -> Any:
    plane = Versioned(tmp_path)
    plane.settle()
    yield plane
    plane.builder.held.set()
    plane.control.stop(timeout_seconds=60)


NAMES = ["relu", "relu@dense", "relu@int8"]


def test_all_versions_are_served_with_all_their_tiers(plane: Versioned) -> None:
    plane.serve("9", "10", policy="all")
    plane.settle_again()
    assert plane.index() == {"9": NAMES, "10": NAMES}
    assert (plane.answer(), plane.answer("9"), plane.answer("10")) == (10, 9, 10)
    with pytest.raises(NotFound, match="no version '1'; it has: 9, 10"):
        plane.registry.get("relu", version="1")
    assert [one["version"] for one in plane.control.all_tiers()] == ["9", "10"]
    assert plane.control.tiers("relu", version="9")["successor"] is None


def test_former_version_serves_until_the_latest_is_ready_with_all_its_tiers(plane: Versioned) -> None:
    plane.serve("2")
    plane.settle_again()
    former = plane.instances("2")
    seen: list[tuple[str, list[str]]] = []
    plane.builder.on_built = lambda tier: seen.append(
        (plane.registry.get("relu").version, [model.version for model in plane.registry.versions("relu")])
    )
    plane.serve("2", "3")
    assert plane.control.tiers("relu")["successor"]["version"] == "3"
    plane.settle_again()

    assert seen == [("2", ["2", "3"])] * 2
    assert eventually(lambda: plane.index() == {"3": NAMES})
    assert plane.answer() == 3
    assert all(is_retired_soon(instance) for instance in former)
    assert plane.control.tiers("relu")["successor"] is None


def test_version_that_is_not_wanted_any_more_stays_when_the_latest_fails(plane: Versioned) -> None:
    plane.serve("2")
    plane.settle_again()
    plane.builder.failure = plane.failed("it is no graph")
    plane.serve("2", "3")
    plane.settle_again()
    assert plane.answer() == 2
    assert plane.control.tiers("relu")["successor"]["tiers"][0]["reasons"] == ["it is no graph"]
    assert not any(is_retired(instance) for instance in plane.instances("2"))

    # Taken back, nothing is left of it.
    plane.serve("2")
    assert [model.version for model in plane.registry.versions("relu")] == ["2"]
    assert plane.answer() == 2


def test_lower_version_takes_over_when_the_highest_is_taken_back(plane: Versioned) -> None:
    plane.serve("2", "3")
    plane.settle_again()
    assert eventually(lambda: list(plane.index()) == ["3"])
    seen: list[str] = []
    plane.builder.on_built = lambda tier: seen.append(plane.registry.get("relu").version)
    plane.serve("2")
    plane.settle_again()
    assert eventually(lambda: list(plane.index()) == ["2"])
    assert set(seen) == {"3"}
    assert plane.answer() == 2


def test_version_of_which_another_is_ready_already_goes_at_once(plane: Versioned) -> None:
    plane.serve("2", "3", policy="all")
    plane.settle_again()
    three = plane.instances("3")
    plane.serve("2", "3", policy=["2"])
    assert [model.version for model in plane.registry.versions("relu")] == ["2"]
    assert plane.answer() == 2
    assert all(is_retired_soon(instance) for instance in three)


def test_source_of_one_version_is_replaced_and_the_other_is_left_alone(plane: Versioned) -> None:
    plane.serve("2", "3", policy="all")
    plane.settle_again()
    three, former = plane.instances("3"), plane.instances("2")
    plane.serve("2", "3", policy="all", sources={"2": "7"})
    assert plane.control.tiers("relu", version="2")["successor"]["version"] == "2"
    plane.settle_again()
    assert eventually(lambda: plane.answer("2") == 7)
    assert plane.instances("3") == three
    assert all(is_retired_soon(instance) for instance in former)
    assert not any(is_retired(instance) for instance in three)


def test_variants_stay_open_while_a_request_is_on_its_way_to_them(plane: Versioned) -> None:
    plane.serve("2")
    plane.settle_again()
    former, awaited = plane.instances("2"), {"2"}
    plane.control._is_awaited = lambda model: model.version in awaited
    plane.control._grace_seconds = 0.01
    plane.serve("3")
    plane.settle_again()
    assert eventually(lambda: plane.answer() == 3)
    assert not eventually(lambda: any(is_retired(instance) for instance in former), seconds=0.3)
    awaited.clear()
    assert all(is_retired_soon(instance) for instance in former)
