"""TensorRT: the lowering in the process, the format of bundles, and its engines."""
