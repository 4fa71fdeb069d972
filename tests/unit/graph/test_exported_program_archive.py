import pytest

from serveprune.graph.exported_program_archive import _is_plain_expression, _is_plain_treespec, _problems


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s17', positive=True, integer=True)",
        "Mul(Integer(8), Symbol('s17', positive=True, integer=True))",
        "FloorDiv(Symbol('s0', integer=True), Integer(2))",
        "2*s0 + 1",
        "Max(1, s0//2)",
    ],
)
def test_expression_is_plain_when_it_is_sizes_only(text: str) -> None:
    assert _is_plain_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "exec('1')",
        "Integer(\"__import__('os').system('true')\")",
        "().__class__",
        "[c for c in (1,)]",
        "Symbol('a').args[0]",
        "(lambda: 1)()",
        None,
    ],
)
def test_expression_is_refused_when_it_could_run_something(text: object) -> None:
    assert not _is_plain_expression(text)


def test_treespec_is_plain_when_it_is_containers() -> None:
    leaf = '{"type": null, "context": null, "children_spec": []}'
    assert _is_plain_treespec(f'[1, {{"type": "builtins.dict", "context": "[\\"a\\"]", "children_spec": [{leaf}]}}]')


def test_treespec_is_refused_when_it_names_a_module() -> None:
    context = '{"default_factory_module": "os", "default_factory_name": "system", "dict_context": []}'
    spec = f'[1, {{"type": "collections.defaultdict", "context": {context}, "children_spec": []}}]'
    assert not _is_plain_treespec(spec)


@pytest.mark.parametrize(
    "target", ["torch.serialization.os.system", "_operator.call", "torch.ops.aten.from_file.default", "os.system", None]
)
def test_operator_is_refused_when_it_is_none_of_atens(target: object) -> None:
    assert list(_problems({"graph_module": {"graph": {"nodes": [{"target": target}]}}}))


@pytest.mark.parametrize("target", ["torch.ops.aten.linear.default", "_operator.getitem", "torch.sym_max"])
def test_operator_is_accepted_when_it_is_one_of_atens(target: str) -> None:
    assert not list(_problems({"graph_module": {"graph": {"nodes": [{"target": target}]}}}))
