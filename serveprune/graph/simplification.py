import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

# The exporter's own optimisation also folds BatchNormalization into convolutions. That is left to the
# passes that want it: fine-tuning and repair need the statistics.
_RULES = [
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.reshape_reshape_rule,
    rules.slice_split_rule,
    rules.squeeze_reshape_1d_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.dropout_inference_rule,
    rules.dropout_zero_rule,
    rules.materialize_reshape_shape_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    *rules.expand_before_binary_op_rules,
]
_ROUNDS = 2


def simplify(model: ir.Model) -> None:
    """Fold constants and drop what does nothing, in place; every layer with weights stays as it is.

    Also removes the exporter's traces of source files, so that the same model gives the same bytes
    wherever it is imported.
    """
    passes.InlinePass()(model)
    for _ in range(_ROUNDS):
        optimizer.fold_constants(model)
        rewriter.rewrite(model, _RULES)
    for step in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.OutputFixPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        step(model)
