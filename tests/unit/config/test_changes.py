"""A table of what changes mean, then every single edit there is, judged by the recipes that artifacts are keyed by."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serveprune.artifacts.key import source_recipe, tier_recipe
from serveprune.config.change import Change, Consequence, TierName
from serveprune.config.changes import config_changes
from serveprune.config.loading import load_config
from serveprune.config.model import DENSE
from serveprune.config.problem import KeyPath, path_text
from serveprune.config.root import ServePruneConfig

from .edits import Edit, edited, single_edits, valued_paths
from .test_reference import EXAMPLE_FILES, example

BASE = """\
profiles:
  int8: {passes: [{quantize: {scheme: dynamic}}], gate: {min_quality: 0.97}}
  lean: {passes: [{prune: {target: {speedup: 1.5}}}]}
  spare: {passes: [{quantize: {}}]}
models:
  minilm: {source: {onnx: a.onnx}, evaluation: {file: a.npz}, tiers: [int8, lean]}
  boots: {source: {onnx: b.onnx}, tiers: [int8]}
  plain: {source: {onnx: c.onnx}}
deployments:
  minilm: {default_tier: int8, share: 2}
"""
AT_ONCE, LOAD, BUILD, RESTART = Consequence.AT_ONCE, Consequence.LOAD, Consequence.BUILD, Consequence.RESTART


def config(text: str) -> ServePruneConfig:
    return ServePruneConfig.model_validate(yaml.safe_load(text))


def after(old: str, new: str) -> str:
    assert BASE.count(old) == 1, old
    return BASE.replace(old, new)


def shown(change: Change) -> tuple[str, str, Consequence, str]:
    tiers = " ".join("@".join(filter(None, tier)) for tier in (*change.built, *change.loaded))
    return str(change.kind), path_text(change.path), change.consequence, tiers


CASES = {
    "nothing": (BASE, []),
    "defaults written out": (
        after("{file: a.npz}", "{file: a.npz, samples: null}")
        .replace("{onnx: b.onnx}", "{onnx: b.onnx}, version: '1', backend: onnxruntime, max_batch_size: 32")
        .replace("deployments:", "server: {http: '127.0.0.1:8080', drain_seconds: 30}\ndeployments:\n  boots: {}"),
        [],
    ),
    "dense written out": (after("tiers: [int8, lean]", "tiers: [dense, int8, lean]"), []),
    "keys in another order": (
        "\n".join(f"{key}: {yaml.safe_load(BASE)[key]}" for key in sorted(yaml.safe_load(BASE))),
        [],
    ),
    "a source": (
        after("a.onnx", "z.onnx"),
        [("changed", "models.minilm.source.onnx", BUILD, "minilm@dense minilm@int8 minilm@lean")],
    ),
    "a source of another kind": (
        after("{onnx: a.onnx}", "{pt2: a.pt2}"),
        [("changed", "models.minilm.source", BUILD, "minilm@dense minilm@int8 minilm@lean")],
    ),
    "preprocessing": (
        after("{onnx: b.onnx}", "{onnx: b.onnx}, preprocessing: {kind: image, size: 28}"),
        [("changed", "models.boots.preprocessing", BUILD, "boots@dense boots@int8")],
    ),
    "a data set": (
        after("a.npz", "z.npz"),
        [("changed", "models.minilm.evaluation.file", BUILD, "minilm@int8 minilm@lean")],
    ),
    "a data set of a model without tiers": (
        after("c.onnx}", "c.onnx}, evaluation: {file: c.npz}"),
        [("changed", "models.plain.evaluation", AT_ONCE, "")],
    ),
    "the version": (
        after("b.onnx}", "b.onnx}, version: '2'"),
        [("changed", "models.boots.version", LOAD, "boots@dense boots@int8")],
    ),
    "a bound of batches": (
        after("b.onnx}", "b.onnx}, max_batch_elements: 9"),
        [("changed", "models.boots.max_batch_elements", LOAD, "boots@dense boots@int8")],
    ),
    "the backend, to the faster one": (
        after("b.onnx}", "b.onnx}, backend: auto"),
        [("changed", "models.boots.backend", BUILD, "boots@int8")],
    ),
    "the backend, of dense too": (
        after("b.onnx}", "b.onnx}, backend: openvino"),
        [("changed", "models.boots.backend", BUILD, "boots@int8 boots@dense")],
    ),
    "the backend of a model without tiers": (
        after("c.onnx}", "c.onnx}, backend: auto"),
        [("changed", "models.plain.backend", AT_ONCE, "")],
    ),
    "the backend of a model without tiers, of dense too": (
        after("c.onnx}", "c.onnx}, backend: openvino"),
        [("changed", "models.plain.backend", LOAD, "plain@dense")],
    ),
    "a tier that comes": (
        after("tiers: [int8, lean]", "tiers: [int8, spare, lean]"),
        [("added", "models.minilm.tiers", BUILD, "minilm@spare")],
    ),
    "a tier that goes": (
        after("tiers: [int8, lean]", "tiers: [lean]").replace("default_tier: int8, ", ""),
        [("removed", "models.minilm.tiers", AT_ONCE, ""), ("changed", "deployments.minilm.default_tier", AT_ONCE, "")],
    ),
    "tiers in another order": (
        after("tiers: [int8, lean]", "tiers: [lean, int8]"),
        [("changed", "models.minilm.tiers", AT_ONCE, "")],
    ),
    "tiers in another order, with others": (
        after("tiers: [int8, lean]", "tiers: [lean, spare, int8]"),
        [
            ("added", "models.minilm.tiers", BUILD, "minilm@spare"),
            ("changed", "models.minilm.tiers", AT_ONCE, ""),
        ],
    ),
    "a model that comes": (
        after("deployments:", "  new: {source: {onnx: n.onnx}, tiers: [lean]}\ndeployments:\n  new: {priority: 1}"),
        [
            ("added", "models.new", BUILD, "new@dense new@lean"),
            ("added", "deployments.new.priority", AT_ONCE, ""),
        ],
    ),
    "a model that goes with its deployment": (
        "\n".join(line for line in BASE.splitlines() if "minilm" not in line).replace(
            "deployments:", "deployments: {}"
        ),
        [("removed", "models.minilm", AT_ONCE, "")],
    ),
    "a model under another name": (
        after("  boots:", "  shoes:"),
        [("removed", "models.boots", AT_ONCE, ""), ("added", "models.shoes", BUILD, "shoes@dense shoes@int8")],
    ),
    "a tier that comes, of which more changes": (
        after("a.npz", "z.npz")
        .replace("tiers: [int8, lean]", "version: '2', tiers: [spare, int8, lean]")
        .replace("spare: {passes: [{quantize: {}}]}", "spare: {passes: [{quantize: {keep_float: 1}}]}"),
        [
            ("changed", "models.minilm.version", LOAD, "minilm@dense minilm@int8 minilm@lean"),
            ("changed", "models.minilm.evaluation.file", BUILD, "minilm@int8 minilm@lean"),
            ("added", "models.minilm.tiers", BUILD, "minilm@spare"),
            ("changed", "profiles.spare.passes[0].quantize.keep_float", AT_ONCE, ""),
        ],
    ),
    "passes": (
        after("scheme: dynamic", "scheme: static"),
        [("changed", "profiles.int8.passes[0].quantize.scheme", BUILD, "minilm@int8 boots@int8")],
    ),
    "a pass more": (
        after("speedup: 1.5}}}", "speedup: 1.5}}}, {quantize: {}}"),
        [("added", "profiles.lean.passes[1]", BUILD, "minilm@lean")],
    ),
    "a gate": (
        after("0.97", "0.98"),
        [("changed", "profiles.int8.gate.min_quality", LOAD, "minilm@int8 boots@int8")],
    ),
    "a gate that is no longer": (
        after(", gate: {min_quality: 0.97}", ""),
        [("changed", "profiles.int8.gate.min_quality", LOAD, "minilm@int8 boots@int8")],
    ),
    "a profile that no model has": (
        after("spare: {passes: [{quantize: {}}]}", "spare: {passes: [{distill: {}}], gate: {min_quality: 0.5}}"),
        [
            ("removed", "profiles.spare.passes[0]", AT_ONCE, ""),
            ("added", "profiles.spare.passes[0]", AT_ONCE, ""),
            ("changed", "profiles.spare.gate.min_quality", AT_ONCE, ""),
        ],
    ),
    "a profile that comes and one that goes": (
        after("  spare:", "  other:"),
        [("removed", "profiles.spare", AT_ONCE, ""), ("added", "profiles.other", AT_ONCE, "")],
    ),
    "a profile that comes with a tier": (
        after("  spare:", "  other:").replace("tiers: [int8]}", "tiers: [int8, other]}"),
        [
            ("added", "models.boots.tiers", BUILD, "boots@other"),
            ("removed", "profiles.spare", AT_ONCE, ""),
            ("added", "profiles.other", BUILD, "boots@other"),
        ],
    ),
    "a deployment": (
        after("{default_tier: int8, share: 2}", "{policy: adaptive, target_latency_ms: 50}"),
        [
            ("changed", "deployments.minilm.policy", AT_ONCE, ""),
            ("changed", "deployments.minilm.default_tier", AT_ONCE, ""),
            ("changed", "deployments.minilm.target_latency_ms", AT_ONCE, ""),
            ("changed", "deployments.minilm.share", AT_ONCE, ""),
        ],
    ),
    "a deployment where there was none": (
        BASE + "  boots: {max_queued_requests: 8}\n",
        [("changed", "deployments.boots.max_queued_requests", AT_ONCE, "")],
    ),
    "the server, the store and builds": (
        BASE
        + "server: {http: '127.0.0.1:1', threads_per_executor: 2}\nstore: {max_bytes: 1GB}\nbuilds: {niceness: 1}\n",
        [
            ("changed", "store.max_bytes", RESTART, ""),
            ("changed", "server.http", RESTART, ""),
            ("changed", "server.threads_per_executor", RESTART, ""),
            ("changed", "builds.niceness", RESTART, ""),
        ],
    ),
}


@pytest.mark.parametrize(("new", "expected"), CASES.values(), ids=CASES.keys())
def test_change_has_its_place_and_its_consequence(new: str, expected: list[tuple[str, str, Consequence, str]]) -> None:
    changes = config_changes(config(BASE), config(new))
    assert [shown(change) for change in changes.changes] == expected
    assert bool(changes) == bool(expected)


def test_tiers_are_listed_once_and_in_the_order_of_the_new_config() -> None:
    new = after("tiers: [int8, lean]", "tiers: [lean, int8]").replace("speedup: 1.5", "speedup: 2")
    new = new.replace("a.npz", "z.npz").replace("0.97", "0.98").replace("b.onnx}", "b.onnx}, version: '2'")
    changes = config_changes(config(BASE), config(new))
    assert changes.built == (TierName("minilm", "lean"), TierName("minilm", "int8"))
    assert changes.loaded == (TierName("boots", DENSE), TierName("boots", "int8"))


def test_changes_that_need_a_restart_are_told_apart() -> None:
    changes = config_changes(config(BASE), config(after("share: 2", "share: 3") + "server: {executors: 3}\n"))
    assert [path_text(change.path) for change in changes.needing_restart] == ["server.executors"]
    assert len(changes.changes) == 2


def test_change_holds_what_was_and_what_will_be() -> None:
    old, new = config(BASE), config(after("tiers: [int8, lean]", "tiers: [lean, int8]").replace("share: 2", "share: 3"))
    order, share = config_changes(old, new).changes
    assert (order.old, order.new) == ((DENSE, "int8", "lean"), (DENSE, "lean", "int8"))
    assert (share.old, share.new) == (2.0, 3.0)
    (gone,) = config_changes(
        new,
        config(
            after("  minilm: {source", "  x: {source").replace(
                "  minilm: {default_tier: int8, share: 2}", "  x: {share: 3}"
            )
        ),
    ).changes[:1]
    assert (gone.old, gone.new) == (new.models["minilm"], None)


VERSIONS = """\
profiles:
  int8: {passes: [{quantize: {scheme: dynamic}}], gate: {min_quality: 0.97}}
  spare: {passes: [{quantize: {}}]}
models:
  m:
    versions:
      "9": {source: {onnx: nine.onnx}}
      "10": {source: {onnx: ten.onnx}, max_batch_size: 8}
    version_policy: all
    evaluation: {file: a.npz}
    tiers: [int8]
"""
ONE_SOURCE = "m: {source: {onnx: nine.onnx}, version: '9', tiers: [int8], evaluation: {file: a.npz}}"
NINE, TEN, ELEVEN = (f"m@dense@{number} m@int8@{number}" for number in (9, 10, 11))


def of_versions(*replacements: tuple[str, str], base: str = VERSIONS) -> str:
    for old, new in replacements:
        assert base.count(old) == 1, old
        base = base.replace(old, new)
    return base


ALL, ADD_ELEVEN = "    version_policy: all\n", ('      "9"', '      "11": {source: {onnx: eleven.onnx}}\n      "9"')
VERSION_CASES = {
    "nothing": (VERSIONS, VERSIONS, []),
    "a version that comes": (
        VERSIONS,
        of_versions(ADD_ELEVEN),
        [("added", "models.m.versions.11", BUILD, ELEVEN, "")],
    ),
    "a version that comes, and takes the place of another": (
        of_versions((ALL, "")),
        of_versions((ALL, ""), ADD_ELEVEN),
        [("added", "models.m.versions.11", BUILD, ELEVEN, "version 10 is unloaded once another one has taken over")],
    ),
    "a version that comes and is not served": (
        of_versions((ALL, "    version_policy: ['9']\n")),
        of_versions((ALL, "    version_policy: ['9']\n"), ADD_ELEVEN),
        [("added", "models.m.versions.11", AT_ONCE, "", "version_policy does not have it served")],
    ),
    "a version that goes": (
        of_versions(ADD_ELEVEN),
        VERSIONS,
        [("removed", "models.m.versions.11", AT_ONCE, "", "requests in flight are answered before it goes")],
    ),
    "a version that goes, and another comes back": (
        of_versions((ALL, ""), ADD_ELEVEN),
        of_versions((ALL, "")),
        [
            (
                "removed",
                "models.m.versions.11",
                BUILD,
                TEN,
                "requests in flight are answered before it goes; version 10 is served again",
            )
        ],
    ),
    "a version's source": (
        VERSIONS,
        of_versions(("ten.onnx", "other.onnx")),
        [("changed", "models.m.versions.10.source.onnx", BUILD, TEN, "")],
    ),
    "what a version says of its batches": (
        VERSIONS,
        of_versions(("max_batch_size: 8", "max_batch_size: 9")),
        [("changed", "models.m.versions.10.max_batch_size", LOAD, TEN, "")],
    ),
    "what a version of two says itself": (
        VERSIONS,
        of_versions(("    evaluation:", "    max_batch_size: 16\n    evaluation:")),
        [("changed", "models.m.max_batch_size", LOAD, NINE, "")],
    ),
    "what holds for both": (
        VERSIONS,
        of_versions(("a.npz", "z.npz")),
        [("changed", "models.m.evaluation.file", BUILD, "m@int8@9 m@int8@10", "")],
    ),
    "a version that is not served": (
        of_versions((ALL, "")),
        of_versions((ALL, ""), ("nine.onnx", "other.onnx")),
        [("changed", "models.m.versions.9.source.onnx", AT_ONCE, "", "no tier depends on it")],
    ),
    "the policy": (
        VERSIONS,
        of_versions((ALL, "    version_policy: {latest: 1}\n")),
        [
            (
                "changed",
                "models.m.version_policy",
                AT_ONCE,
                "",
                "version 9 is unloaded once another one has taken over",
            )
        ],
    ),
    "the policy, to more": (
        of_versions((ALL, "")),
        VERSIONS,
        [("changed", "models.m.version_policy", BUILD, NINE, "")],
    ),
    "a tier of all": (
        VERSIONS,
        of_versions(("tiers: [int8]", "tiers: [int8, spare]")),
        [("added", "models.m.tiers", BUILD, "m@spare@9 m@spare@10", "")],
    ),
    "passes": (
        VERSIONS,
        of_versions(("scheme: dynamic", "scheme: static")),
        [("changed", "profiles.int8.passes[0].quantize.scheme", BUILD, "m@int8@9 m@int8@10", "")],
    ),
    "from one source to versions": (
        "profiles: {int8: {passes: [{quantize: {scheme: dynamic}}], gate: {min_quality: 0.97}}, "
        "spare: {passes: [{quantize: {}}]}}\nmodels:\n  " + ONE_SOURCE,
        VERSIONS,
        [
            ("added", "models.m.versions.10", BUILD, TEN, ""),
            ("changed", "models.m.version_policy", AT_ONCE, "", ""),
        ],
    ),
}


@pytest.mark.parametrize(("old", "new", "expected"), VERSION_CASES.values(), ids=VERSION_CASES.keys())
def test_change_of_versions_says_which_of_them_it_takes(
    old: str, new: str, expected: list[tuple[str, str, Consequence, str, str]]
) -> None:
    changes = config_changes(config(old), config(new))
    assert [(*shown(change), change.note) for change in changes.changes] == expected


@dataclass(frozen=True)
class Reference:
    """A config with every key, and every single edit of it; each file that they name has another content."""

    config: ServePruneConfig
    edits: tuple[Edit, ...]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("reference")
    for name in (*EXAMPLE_FILES, "my_package/__init__.py", "my_package/networks.py", "other.py", "new.npz"):
        _write(folder / name, f"# {name}" if name.endswith(".py") else f'{{"text": "{name}"}}')
    file = folder / "serveprune.yaml"
    file.write_text(example())
    config = load_config(file, environment={})
    edits = tuple(single_edits(config, new_file=folder / "new.npz"))
    for edit in edits:
        if isinstance(edit.value, Path) and not edit.value.exists():
            is_folder = edit.path[-1] == "huggingface"
            _write(edit.value / "config.json" if is_folder else edit.value, f'{{"text": "{edit.value.name}"}}')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield Reference(config, edits)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def recipes(config: ServePruneConfig) -> dict[TierName, str]:
    """What each tier's artifact is keyed by, the threads of serving apart, which need a restart."""
    found = {}
    for (name, version), model in config.served().items():
        shown = version if config.models[name].versions else None
        found[TierName(name, DENSE, shown)] = dense = source_recipe(model)
        for tier in model.tiers[1:]:
            found[TierName(name, tier, shown)] = tier_recipe(dense, model, config.profiles[tier], threads=1)
    return found


def expect_found(old: ServePruneConfig, new: ServePruneConfig, edits: Collection[Edit]) -> None:
    changes = config_changes(old, new)
    paths = [change.path for change in changes.changes]
    for edit in edits:
        assert any(_same_place(edit.path, path) for path in paths), edit
    for path in paths:
        assert any(_same_place(edit.path, path) for edit in edits), path
    before, now = recipes(old), recipes(new)
    assert set(changes.built) == {tier for tier, recipe in now.items() if before.get(tier) != recipe}, edits
    for change in changes.changes:
        assert change.needs_restart == (change.path[0] in ("server", "store", "builds", "repository"))


def _same_place(one: KeyPath, other: KeyPath) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def test_every_single_edit_is_found_and_builds_what_has_another_recipe(reference: Reference) -> None:
    for edit in reference.edits:
        new = edited(reference.config, edit)
        assert new is not None
        expect_found(reference.config, new, [edit])


def test_single_edits_leave_out_only_what_cannot_be_edited_alone(reference: Reference) -> None:
    left_out = valued_paths(reference.config) - {edit.path for edit in reference.edits}
    assert {str(path[-1]) for path in left_out} <= {"dtype", "kind", "policy", "structure", "task"}


@settings(derandomize=True, max_examples=60)
@given(data=st.data())
def test_several_edits_are_all_found_when_they_are_made_together(reference: Reference, data: st.DataObject) -> None:
    edits = data.draw(
        st.lists(st.sampled_from(reference.edits), min_size=2, max_size=6, unique_by=lambda edit: edit.path)
    )
    new = edited(reference.config, *edits)
    assume(new is not None)
    assert new is not None
    expect_found(reference.config, new, edits)
    there, back = config_changes(reference.config, new), config_changes(new, reference.config)
    assert len(there.changes) == len(back.changes)
    assert not config_changes(new, new)


@settings(derandomize=True, max_examples=20)
@given(data=st.data())
def test_same_config_in_other_words_is_no_change(reference: Reference, data: st.DataObject) -> None:
    edits = data.draw(st.lists(st.sampled_from(reference.edits), max_size=4, unique_by=lambda edit: edit.path))
    one = edited(reference.config, *edits)
    assume(one is not None)
    assert one is not None
    # All defaults but those that others exclude, and the keys of each section in another order.
    written_out = one.model_dump(exclude={"deployments"}) | {
        "deployments": one.model_dump(exclude_unset=True)["deployments"]
    }
    for section in ("profiles", "models", "deployments"):
        written_out[section] = dict(data.draw(st.permutations(list(written_out[section].items()))))
    assert not config_changes(one, ServePruneConfig.model_validate(written_out))
