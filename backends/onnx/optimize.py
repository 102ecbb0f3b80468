"""Makes an ONNX model in memory small and runnable, without changing a value that it computes.

torch.onnx's own optimizer also rewrites by patterns, and compares their constants within a
tolerance: to it x + 1e-15 is x + 0, so that a guard against a division by zero is gone, and linear
attention gives NaN. So only constants are folded here and needless nodes dropped; the runtimes have
rewrites of their own, with exact conditions.
"""

from __future__ import annotations

from typing import Any, Final

from deltapass.libraries import optional_module

ROUNDS: Final = 2  # folding shapes makes further constants


def optimize(model: Any) -> None:
    """Fold constants, drop what is not needed, and replace what runtimes lack; in place."""
    passes = optional_module("onnx_ir.passes.common", "export")
    folding = optional_module("onnxscript.optimizer", "export")
    passes.InlinePass()(model)
    for _ in range(ROUNDS):
        folding.fold_constants(model, onnx_shape_inference=True)
        passes.RemoveUnusedNodesPass()(model)
    replace_boolean_where(model)
    for cleaning in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        cleaning(model)


def replace_boolean_where(model: Any) -> None:
    """Choose between booleans by And, Or and Not: ONNX Runtime's Where takes none on the CPU."""
    ir = optional_module("onnx_ir", "export")
    for node in list(model.graph.all_nodes()):
        result = node.outputs[0]
        if node.op_type != "Where" or result.dtype != ir.DataType.BOOL:
            continue
        condition, chosen, other = node.inputs
        made = ir.tape.Tape()
        first = made.op("And", [condition, chosen])
        second = made.op("And", [made.op("Not", [condition]), other])
        either = made.op("Or", [first, second])
        for new in made.nodes:
            new.outputs[0].type = result.type
        ir.convenience.replace_nodes_and_values(
            node.graph, node, [node], made.nodes, [result], [either]
        )
