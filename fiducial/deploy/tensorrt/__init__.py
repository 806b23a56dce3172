"""TensorRT and TensorRT for RTX: engines built from exported graphs, and run."""
