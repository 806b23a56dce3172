"""Running a model outside Lightning: ONNX export and the predictors of each runtime."""
