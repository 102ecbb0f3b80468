"""ONNX: the lowering in the process, and the format of bundles."""
