"""What a config file is told when it is wrong: which line, what was expected there, and what came."""

import pytest

from .conftest import MODEL, Problems, model

NAME_RULE = "a name of at most 128 letters, digits, `.`, `_` and `-` that begins with a letter, a digit or `_`"
SOURCE_RULE = "a mapping with exactly one of the keys onnx, huggingface, torch, pt2, artifact"
ROOT_KEYS = "store, server, builds, profiles, models, repository, deployments"
MODEL_KEYS = (
    "source, task, version, preprocessing, calibration, evaluation, tiers, backend, max_batch_size, "
    "max_batch_elements, max_queue_delay_ms, versions, version_policy"
)
SERVER_KEYS = (
    "http, grpc, metrics, tls, tokens, admin, tracing, logs, processes, executors, threads_per_executor, grpc_workers, "
    "max_request_bytes, max_buffered_bytes, max_connections, max_header_bytes, max_request_rows, "
    "max_queued_requests, max_queued_bytes, request_timeout_seconds, body_timeout_seconds, drain_seconds"
)


def source(entries: str) -> str:
    """A config whose line 3 holds these entries of the source of the model `m`."""
    return f"models:\n  m:\n    source: {{{entries}}}\n"


def quantize(entries: str) -> str:
    """A config whose line 4 holds one pass."""
    return f"{MODEL}profiles:\n  p:\n    passes: [{entries}]\n"


CASES = {
    # The document
    "empty": ("", f":1: expected a mapping with keys of {ROOT_KEYS}, got nothing"),
    "only a comment": ("# later\n", f":1: expected a mapping with keys of {ROOT_KEYS}, got nothing"),
    "a list": ("- models\n", f":1: expected a mapping with keys of {ROOT_KEYS}, got a list of 1"),
    "a text": ("hello", f":1: expected a mapping with keys of {ROOT_KEYS}, got 'hello'"),
    "syntax": (
        MODEL + "store: {path: x\n",
        (
            ":3: expected YAML, got a syntax error: while parsing a flow mapping: expected ',' or '}', "
            "but got '<stream end>'"
        ),
    ),
    "tab": (
        MODEL + "store:\n\tpath: x\n",
        (
            ":3: expected YAML, got a syntax error: while scanning for the next token: found character '\\t' that "
            "cannot start any token"
        ),
    ),
    "two documents": (
        MODEL + "---\n" + MODEL,
        ":2: expected YAML, got a syntax error: expected a single document in the stream: but found another document",
    ),
    "control character": (MODEL + "store: {path: \x07}\n", ":2: expected text, got the character U+0007"),
    "escape beyond Unicode": (
        'store: "\\UFFFFFFFF"\n',
        ":1: expected YAML, got an escape beyond Unicode or an absurd version directive",
    ),
    "undefined alias": (
        MODEL + "store: *shared\n",
        ":2: expected YAML, got a syntax error: found undefined alias 'shared'",
    ),
    "python tag": (
        MODEL + "store: !!python/object/apply:os.system [id]\n",
        ":2: store: expected a value without a tag, got the tag '!!python/object/apply:os.system'",
    ),
    "own tag": (
        MODEL + "store: {path: !env HOME}\n",
        ":2: store.path: expected a value without a tag, got the tag '!env'",
    ),
    "tag that does not fit": (
        MODEL + "builds: {threads: !!int many}\n",
        ":2: builds.threads: expected what its tag says, got 'many' as the tag '!!int'",
    ),
    "deep nesting": ("[" * 500 + "]" * 500, ":1: expected a few levels of nesting, got hundreds"),
    "recursive alias": (
        "models: &m {m: *m}\n",
        ":1: models.m.m: expected at most 32 levels of nesting, got more",
    ),
    # Keys
    "duplicate key": (
        model("version: '1'\n    version: '2'"),
        ":5: models.m.version: expected each key once, got it again (first on line 4)",
    ),
    "number as key": (
        "models:\n  8: {source: {onnx: model.onnx}}\n",
        ":2: models.8: expected text as a key, got 8; put it in quotes",
    ),
    "list as key": (MODEL + "? [a]\n: 1\n", ":2: expected text as a key, got a list or a mapping"),
    "unknown top key": (
        MODEL + "model: {}\n",
        f":2: model: unknown key; did you mean `models`? known keys: {ROOT_KEYS}",
    ),
    "unknown key": (
        model("tier: [dense]"),
        f":4: models.m.tier: unknown key; did you mean `tiers`? known keys: {MODEL_KEYS}",
    ),
    "unknown key like no other": (
        MODEL + "server:\n  xyz: 1\n",
        f":3: server.xyz: unknown key; known keys: {SERVER_KEYS}",
    ),
    "unknown key of a source": (
        source("huggingface: minilm, task: feature-extraction, pool: mean"),
        (
            ":3: models.m.source.pool: unknown key; did you mean `pooling`? "
            "known keys: huggingface, task, pooling, normalize"
        ),
    ),
    "unknown pass": (
        quantize("{quantise: {}}"),
        (
            ":4: profiles.p.passes[0].quantise: unknown key; did you mean `quantize`? known keys: "
            "distill, lottery, prune, quantize"
        ),
    ),
    "missing models": (
        "store: {}\n",
        (
            ":1: models: expected this key, got none (Name -> model, as clients ask for it. `{}` if all of them are in "
            "the repository.)"
        ),
    ),
    "missing choice": (
        source("huggingface: minilm"),
        (
            ":3: models.m.source.task: expected this key, got none "
            "(one of feature-extraction, sequence-classification, image-classification)"
        ),
    ),
    # Types
    "nothing where a mapping belongs": (
        MODEL + "server:\n",
        f":2: server: expected a mapping with keys of {SERVER_KEYS}, got nothing",
    ),
    "list where a mapping belongs": (
        "models: [m]\n",
        ":1: models: expected a mapping, got a list of 1",
    ),
    "text where a list belongs": (
        model("tiers: dense"),
        ":4: models.m.tiers: expected a list, got 'dense'",
    ),
    "number where text belongs": (
        model("version: 1.10"),
        ":4: models.m.version: expected text, got 1.1; put it in quotes",
    ),
    "text where a number belongs": (
        model("max_batch_size: many"),
        ":4: models.m.max_batch_size: expected a whole number, got 'many'",
    ),
    "fraction where a whole number belongs": (
        model("max_batch_size: 1.5"),
        ":4: models.m.max_batch_size: expected a whole number, got 1.5",
    ),
    "truth value where a number belongs": (
        model("max_batch_size: true"),
        ":4: models.m.max_batch_size: expected a whole number, got true",
    ),
    "text where true or false belongs": (
        source("huggingface: minilm, task: feature-extraction, normalize: maybe"),
        ":3: models.m.source.normalize: expected true or false, got 'maybe'",
    ),
    "text where a fraction belongs": (
        MODEL + "server: {drain_seconds: 5s}\n",
        ":2: server.drain_seconds: expected a number, got '5s'",
    ),
    "number where a path belongs": (
        source("onnx: 5"),
        ":3: models.m.source.onnx: expected a path, got 5",
    ),
    "number where an options mapping belongs": (
        quantize("{quantize: int8}"),
        (
            ":4: profiles.p.passes[0].quantize: expected a mapping with keys of dtype, scheme, ignore, "
            "keep_float, got 'int8'"
        ),
    ),
    # Ranges
    "too small": (
        model("max_batch_size: 0"),
        ":4: models.m.max_batch_size: expected a number of at least 1, got 0",
    ),
    "too large": (
        MODEL + "builds: {niceness: 20}\n",
        ":2: builds.niceness: expected a number of at most 19, got 20",
    ),
    "not above": (
        MODEL + "builds: {timeout_seconds: 0}\n",
        ":2: builds.timeout_seconds: expected a number above 0, got 0",
    ),
    "not finite": (
        MODEL + "builds: {timeout_seconds: .inf}\n",
        ":2: builds.timeout_seconds: expected a finite number, got inf",
    ),
    "huge number": (
        MODEL + f"builds: {{threads: {'9' * 5000}}}\n",
        f":2: builds.threads: expected what its tag says, got '{'9' * 76}... as the tag '!!int'",
    ),
    "size": (
        MODEL + "store: {max_bytes: 20 Gigs}\n",
        ":2: store.max_bytes: expected a size above 0 in bytes, such as 512MiB or 20GiB, got '20 Gigs'",
    ),
    "size of nothing": (
        MODEL + "store: {max_bytes: 0}\n",
        ":2: store.max_bytes: expected a size above 0 in bytes, such as 512MiB or 20GiB, got 0",
    ),
    "message size beyond gRPC": (
        MODEL + "server: {max_request_bytes: 2GiB}\n",
        ":2: server.max_request_bytes: expected a number of at most 2147483647, got '2GiB'",
    ),
    "address without port": (
        MODEL + "server: {http: localhost}\n",
        ":2: server.http: expected \"host:port\" with a port from 0 to 65535, got 'localhost'",
    ),
    "address with a port too large": (
        MODEL + "server: {http: 'localhost:65536'}\n",
        ":2: server.http: expected \"host:port\" with a port from 0 to 65535, got 'localhost:65536'",
    ),
    "port alone": (
        MODEL + "server: {http: 8080}\n",
        ':2: server.http: expected "host:port" with a port from 0 to 65535, got 8080',
    ),
    # Choices
    "unknown choice": (
        quantize("{quantize: {scheme: statc}}"),
        (
            ":4: profiles.p.passes[0].quantize.scheme: expected one of auto, dynamic, static, nncf, got 'statc'; "
            "did you mean `static`?"
        ),
    ),
    "unknown source": (
        source("hugingface: minilm, task: feature-extraction"),
        (
            f":3: models.m.source: expected {SOURCE_RULE}, got a mapping with the keys hugingface, task; "
            "did you mean `huggingface`?"
        ),
    ),
    "neither source nor versions": (
        "models:\n  m:\n    tiers: [dense]\n",
        f":2: models.m.source: expected source ({SOURCE_RULE.replace('exactly one', 'one')}) or versions, got neither",
    ),
    "source and versions": (
        model("versions: {'1': {source: {onnx: model.onnx}}}"),
        ":4: models.m.versions: expected source or versions, got both",
    ),
    "version beside versions": (
        "models:\n  m:\n    versions: {'1': {source: {onnx: model.onnx}}}\n    version: '2'\n",
        ":4: models.m.version: expected no version beside versions, whose keys they are, got one",
    ),
    "policy of versions that has nothing to choose from": (
        model("version_policy: all"),
        ":4: models.m.version_policy: expected this with versions only, got it with one source",
    ),
    "policy that names no version": (
        "models:\n  m:\n    versions: {'1': {source: {onnx: model.onnx}}}\n    version_policy: ['1', '3']\n",
        ":4: models.m.version_policy[1]: expected one of the versions, got '3'; versions: 1",
    ),
    "policy that is none": (
        "models:\n  m:\n    versions: {'1': {source: {onnx: model.onnx}}}\n    version_policy: {latest: 0}\n",
        (
            ":4: models.m.version_policy: expected latest, all, {latest: COUNT} or a list of versions (in quotes), got "
            "a mapping with the keys latest"
        ),
    ),
    "version that is a number": (
        "models:\n  m:\n    versions:\n      1: {source: {onnx: model.onnx}}\n",
        ":4: models.m.versions.1: expected text as a key, got 1; put it in quotes",
    ),
    "tiers of a version": (
        "models:\n  m:\n    versions: {'1': {source: {onnx: model.onnx}, tiers: [dense]}}\n",
        (
            ":3: models.m.versions.1.tiers: unknown key; known keys: source, task, preprocessing, calibration, "
            "evaluation, backend, max_batch_size, max_batch_elements, max_queue_delay_ms"
        ),
    ),
    "two sources": (
        source("onnx: model.onnx, pt2: model.pt2"),
        f":3: models.m.source: expected {SOURCE_RULE}, got a mapping with the keys onnx, pt2",
    ),
    "source without its kind": (
        "models: {m: {source: model.onnx}}\n",
        f":1: models.m.source: expected {SOURCE_RULE}, got 'model.onnx'",
    ),
    "unknown preprocessing": (
        model("preprocessing: {kind: txt}"),
        ":4: models.m.preprocessing.kind: expected one of text, image, got 'txt'; did you mean `text`?",
    ),
    "preprocessing without kind": (
        model("preprocessing: {tokenizer: tokenizer.json}"),
        (
            ":4: models.m.preprocessing: expected a mapping with the key kind, which is one of text, image, "
            "got a mapping with the keys tokenizer"
        ),
    ),
    "no pass": (
        quantize(""),
        ":4: profiles.p.passes: expected at least 1 entry, got an empty list",
    ),
    "empty pass": (
        quantize("{}"),
        (
            ":4: profiles.p.passes[0]: expected exactly one pass per list entry, one of distill, "
            "lottery, prune, quantize, got none"
        ),
    ),
    # Fields that must fit each other
    "pooling for a classifier": (
        source("huggingface: minilm, task: image-classification, pooling: mean"),
        (
            ":3: models.m.source.pooling: expected this with task feature-extraction only, "
            "got it with task image-classification"
        ),
    ),
    "statistics and channels": (
        model("preprocessing: {kind: image, size: 28, channels: 3, mean: [0.5, 0.5]}"),
        ":4: models.m.preprocessing.mean: expected 1 or 3 values, got 2",
    ),
    "deviation of zero": (
        model("preprocessing: {kind: image, size: 28, std: [0]}"),
        ":4: models.m.preprocessing.std: expected values above 0, got 0.0",
    ),
    "image size": (
        model("preprocessing: {kind: image, size: [28, 0]}"),
        (
            ":4: models.m.preprocessing.size: expected one number of pixels or [height, width], each from 1 to 16384, "
            "got a list of 2"
        ),
    ),
    "factory": (
        source("torch: package.module, inputs: [{name: x, shape: [batch, 4]}]"),
        ":3: models.m.source.torch: expected `package.module:function`, called without arguments, got 'package.module'",
    ),
    "axis": (
        source("torch: 'a:b', inputs: [{name: x, shape: [batch, -1]}]"),
        ":3: models.m.source.inputs[0].shape[1]: expected a size above 0 or the name of a dynamic axis, got -1",
    ),
    "datatype": (
        source("torch: 'a:b', inputs: [{name: x, shape: [batch], datatype: fp32}]"),
        (
            ":3: models.m.source.inputs[0].datatype: expected one of BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, "
            "INT32, INT64, FP16, FP32, FP64, got 'fp32'"
        ),
    ),
    "two inputs of one name": (
        source("torch: 'a:b', inputs: [{name: x, shape: [batch]}, {name: x, shape: [batch]}]"),
        ":3: models.m.source.inputs: expected each name once, got x more than once",
    ),
    # Files
    "missing file": (
        source("onnx: no.onnx"),
        ":3: models.m.source.onnx: expected a file, but no.onnx does not exist",
    ),
    "folder where a file belongs": (
        source("pt2: minilm"),
        ":3: models.m.source.pt2: expected a file, got a folder: minilm",
    ),
    "name of a hub": (
        source("huggingface: org/minilm, task: feature-extraction"),
        (
            ":3: models.m.source.huggingface: expected a folder, but org/minilm does not exist "
            "(nothing is downloaded from a hub)"
        ),
    ),
    "file where a folder belongs": (
        source("huggingface: model.onnx, task: feature-extraction"),
        ":3: models.m.source.huggingface: expected a folder, got a file: model.onnx",
    ),
    "folder without a model": (
        source("huggingface: no-model, task: feature-extraction"),
        (
            ":3: models.m.source.huggingface: expected a folder as `save_pretrained` leaves it, "
            "but no-model has no config.json"
        ),
    ),
    "missing weights": (
        source("torch: 'a:b', inputs: [{name: x, shape: [batch]}], weights: no.safetensors"),
        ":3: models.m.source.weights: expected a file, but no.safetensors does not exist",
    ),
    "missing tokenizer": (
        model("preprocessing: {kind: text, tokenizer: no.json}"),
        ":4: models.m.preprocessing.tokenizer: expected a file, but no.json does not exist",
    ),
    "missing calibration": (
        model("calibration: {file: no.npz}"),
        ":4: models.m.calibration.file: expected a file, but no.npz does not exist",
    ),
    "missing evaluation": (
        model("evaluation: {file: no.jsonl}"),
        ":4: models.m.evaluation.file: expected a file, but no.jsonl does not exist",
    ),
    "data set of another format": (
        model("evaluation: {file: evaluation.csv}"),
        ":4: models.m.evaluation.file: expected a .npz or .jsonl file, got 'evaluation.csv'",
    ),
    "store that is a file": (
        MODEL + "store: {path: model.onnx}\n",
        ":2: store.path: expected a folder or a free name, got a file: model.onnx",
    ),
    "path that is none": (
        source('onnx: "a\\0b"'),
        ":3: models.m.source.onnx: expected a path, got 'a\\x00b', which cannot be a file name",
    ),
    # Names
    "model name with @": (
        "models:\n  m@1: {source: {onnx: model.onnx}}\n",
        f":2: models['m@1']: expected {NAME_RULE}, got 'm@1'",
    ),
    "model name with /": (
        "models:\n  a/b: {source: {onnx: model.onnx}}\n",
        f":2: models['a/b']: expected {NAME_RULE}, got 'a/b'",
    ),
    "model name of dots": (
        "models:\n  ..: {source: {onnx: model.onnx}}\n",
        f":2: models...: expected {NAME_RULE}, got '..'",
    ),
    "profile name with a space": (
        MODEL + "profiles:\n  int 8: {passes: [{quantize: {}}]}\n",
        f":3: profiles['int 8']: expected {NAME_RULE}, got 'int 8'",
    ),
    "profile named dense": (
        MODEL + "profiles:\n  dense: {passes: [{quantize: {}}]}\n",
        ":3: profiles.dense: expected another name: `dense` is the tier without any pass, which every model has",
    ),
    "no model": ("models: {}\n", ":1: models: expected at least 1 entry, got an empty mapping"),
    # References
    "models to load at the start of a mode that loads none": (
        MODEL + "repository: {mode: poll, load_at_start: [m]}\n",
        ":2: repository.load_at_start: expected this with mode explicit only, got it with mode poll",
    ),
    "no tier": (model("tiers: []"), ":4: models.m.tiers: expected at least 1 entry, got an empty list"),
    "tier twice": (
        model("tiers: [dense, dense]"),
        ":4: models.m.tiers: expected each name once, got dense more than once",
    ),
    "tier without any profile": (
        model("tiers:\n    - dense\n    - int8"),
        ":6: models.m.tiers[1]: expected dense or the name of a profile, got 'int8'; there are no profiles",
    ),
    "tier without its profile": (
        model("tiers: [int4]") + "profiles: {int8: {passes: [{quantize: {}}]}}\n",
        (
            ":4: models.m.tiers[0]: expected dense or the name of a profile, got 'int4'; did you mean `int8`? "
            "profiles: int8"
        ),
    ),
    "static pass without calibration": (
        model("tiers: [p]") + "profiles: {p: {passes: [{quantize: {scheme: static}}]}}\n",
        (
            ":2: models.m.calibration: expected a calibration set, because profile p quantizes with scheme static, "
            "got none"
        ),
    ),
    "deployment of no model": (
        MODEL + "deployments:\n  n: {}\n",
        ":3: deployments.n: expected the name of a model, got 'n'; models: m",
    ),
    "default tier that the model lacks": (
        MODEL + "deployments:\n  m: {default_tier: int8}\n",
        ":3: deployments.m.default_tier: expected a tier of m, got 'int8'; tiers: dense",
    ),
    "unknown policy": (
        MODEL + "deployments:\n  m: {policy: adaptve}\n",
        ":3: deployments.m.policy: expected one of fixed, adaptive, got 'adaptve'; did you mean `adaptive`?",
    ),
    "adaptive deployment without a target": (
        MODEL + "deployments:\n  m: {policy: adaptive}\n",
        (
            ":3: deployments.m.target_latency_ms: expected the milliseconds to keep, which policy adaptive needs, "
            "got none"
        ),
    ),
    "adaptive deployment with a default tier": (
        MODEL + "deployments:\n  m: {policy: adaptive, target_latency_ms: 50, default_tier: dense}\n",
        (
            ":3: deployments.m.default_tier: expected no default_tier with policy adaptive, which chooses the tier, "
            "got 'dense'"
        ),
    ),
    "target without a sense": (
        MODEL + "deployments:\n  m: {policy: adaptive, target_latency_ms: 0}\n",
        ":3: deployments.m.target_latency_ms: expected a number above 0, got 0",
    ),
    "quality above that of dense": (
        MODEL + "deployments:\n  m: {policy: adaptive, target_latency_ms: 50, min_quality: 95}\n",
        ":3: deployments.m.min_quality: expected a number of at most 1, got 95",
    ),
    "target of a fixed deployment": (
        MODEL + "deployments:\n  m: {target_latency_ms: 50}\n",
        ":3: deployments.m.target_latency_ms: expected this with policy adaptive only, got it with policy fixed",
    ),
    "quality of a fixed deployment": (
        MODEL + "deployments:\n  m: {policy: fixed, min_quality: 0.9}\n",
        ":3: deployments.m.min_quality: expected this with policy adaptive only, got it with policy fixed",
    ),
    "two front ends on one port": (
        MODEL + "server:\n  http: 127.0.0.1:9000\n  grpc: 127.0.0.1:9000\n",
        ":4: server.grpc: expected a port of its own, got 127.0.0.1:9000, which server.http takes already",
    ),
    "front end on the port of a default": (
        MODEL + "server:\n  http: 127.0.0.1:8082\n",
        ":3: server.http: expected a port of its own, got 127.0.0.1:8082, which server.metrics takes already",
    ),
    "front ends that meet on all interfaces": (
        MODEL + "server: {http: '0.0.0.0:9000', metrics: 'localhost:9000'}\n",
        ":2: server.metrics: expected a port of its own, got localhost:9000, which server.http takes already",
    ),
    "more processes than executors": (
        MODEL + "server: {executors: 2, processes: 4}\n",
        (
            ":2: server.processes: expected no more than server.executors (2), for each process computes with at "
            "least one, got 4"
        ),
    ),
    "no process": (MODEL + "server: {processes: 0}\n", ":2: server.processes: expected a number of at least 1, got 0"),
    # Environment variables
    "variable that is not set": (
        source("onnx: '${NOT_SET}/model.onnx'"),
        (
            ":3: models.m.source.onnx: expected the environment variable NOT_SET to be set; set it, or write "
            "${NOT_SET:-default}"
        ),
    ),
    "reference that is none": (
        source("onnx: '${HOME OF MODELS}'"),
        (
            ":3: models.m.source.onnx: expected ${NAME} or ${NAME:-default} (write $${ for a plain ${), "
            "got '${HOME OF MODELS}'"
        ),
    ),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_load_config_reports_exactly_one_line_when_one_thing_is_wrong(
    text: str, expected: str, problems: Problems
) -> None:
    assert problems(text) == [f"serveprune.yaml{expected}"]


def test_load_config_reports_everything_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    text = """\
store: {max_bytes: lots}
server: {http: 127.0.0.1:9000, grpc: 127.0.0.1:9000}
profiles:
  int8: {passes: [{quantize: {dtype: int4}}]}
models:
  m:
    source: {onnx: no.onnx}
    source: {pt2: no.pt2}
    tiers: [int9]
    calibration: {file: no.npz, samples: 0}
  "a b": {sauce: {}}
deployments:
  n: {default_tier: 5}
"""
    assert [problem.split(": expected")[0].split(": unknown")[0] for problem in problems(text)] == [
        "serveprune.yaml:1: store.max_bytes",
        "serveprune.yaml:2: server.grpc",
        "serveprune.yaml:4: profiles.int8.passes[0].quantize.dtype",
        "serveprune.yaml:7: models.m.source.onnx",
        "serveprune.yaml:8: models.m.source",
        "serveprune.yaml:9: models.m.tiers[0]",
        "serveprune.yaml:10: models.m.calibration.file",
        "serveprune.yaml:10: models.m.calibration.samples",
        "serveprune.yaml:11: models['a b']",
        "serveprune.yaml:11: models['a b'].sauce",
        "serveprune.yaml:11: models['a b'].source",
        "serveprune.yaml:13: deployments.n",
        "serveprune.yaml:13: deployments.n.default_tier",
    ]
