import io
import re
from typing import Any

import yaml
from rich.console import Console

from serveprune.cli.change_table import show_changes
from serveprune.config.changes import config_changes
from serveprune.config.root import ServePruneConfig

OLD = """\
store: {path: store, max_bytes: 20GiB}
profiles:
  int8: {passes: [{quantize: {}}], gate: {min_quality: 0.97}}
  lean: {passes: [{prune: {target: {speedup: 1.5}}}]}
models:
  boots: {source: {onnx: boots.onnx}, tiers: [int8, lean]}
  shoes: {source: {onnx: shoes.onnx}}
"""
NEW = """\
store: {path: store, max_bytes: 50GB}
profiles:
  int8: {passes: [{quantize: {}}], gate: {min_quality: 0.98}}
  lean: {passes: [{prune: {target: {latency_ms: 12}}}, {quantize: {scheme: static}}]}
models:
  boots: {source: {onnx: boots.onnx}, tiers: [lean, int8], max_batch_elements: 512}
  hats: {source: {onnx: hats.onnx}, tiers: [int8]}
deployments:
  boots: {policy: adaptive, target_latency_ms: 50}
"""
EXPECTED = """\
models.boots
  ~  at once  tiers: [dense, int8, lean] -> [dense, lean, int8]  (their order says which one stands in for another)
  ~  load     max_batch_elements: none -> 512  (dense, lean, int8)

models.shoes
  -  at once  removed: {source: {onnx: shoes.onnx}}  (requests in flight are answered before it goes)

models.hats
  +  build    added: {source: {onnx: hats.onnx}, tiers: [dense, int8]}  (dense, int8)

profiles.int8
  ~  load     gate.min_quality: 0.97 -> 0.98  (boots@int8; judged anew by what was measured)

profiles.lean
  ~  build    passes[0].prune.target: {speedup: 1.5} -> {latency_ms: 12}  (boots@lean)
  +  build    passes[1]: {quantize: {scheme: static}}  (boots@lean)

deployments.boots
  ~  at once  policy: fixed -> adaptive
  ~  at once  target_latency_ms: none -> 50

store
  ~  restart  max_bytes: 20GiB -> 50GB

10 changes, in a running server:
  at once  4 of 10
  load     judged, loaded and warmed anew, without a build: boots@dense, boots@int8
  build    built, judged and warmed first, but for what the store has: boots@lean, hats@dense, hats@int8
  restart  taken on when the server is started again: store.max_bytes
"""


def shown(old: str, new: str, **options: Any) -> str:
    output = io.StringIO()
    before, after = (ServePruneConfig.model_validate(yaml.safe_load(text)) for text in (old, new))
    show_changes(config_changes(before, after), Console(file=output, highlight=False, **options))
    return output.getvalue()


def test_changes_are_grouped_by_what_they_are_of_and_summed_up() -> None:
    assert shown(OLD, NEW, width=1000) == EXPECTED


def test_changes_are_coloured_on_a_terminal_only() -> None:
    coloured = shown(OLD, NEW, width=1000, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;31mrestart" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == EXPECTED


def test_long_line_goes_on_below_its_text_when_the_terminal_is_narrow() -> None:
    lines = [line.rstrip() for line in shown(OLD, NEW, width=60).splitlines()]
    assert max(map(len, lines)) <= 60
    assert lines[1:4] == [
        "  ~  at once  tiers: [dense, int8, lean] -> [dense, lean,",
        "              int8]  (their order says which one stands in",
        "              for another)",
    ]


def test_one_change_is_not_many() -> None:
    text = shown(OLD, OLD.replace("tiers: [int8, lean]", "tiers: [int8]"), width=1000)
    assert text.endswith("\n1 change, in a running server:\n  at once  1 of 1\n")


def test_brackets_of_values_are_no_markup() -> None:
    new = OLD.replace("boots.onnx", '"/models/[red]/boots.onnx"')
    assert "source.onnx: boots.onnx -> /models/[red]/boots.onnx" in shown(OLD, new, width=1000)
