"""The parts that every package's ``load`` is made of."""

import tiny_runtime
from tiny_task import LINE, Spec

from fiducial.actions.perform import perform
from fiducial.library import checkpoint_of, predictor_of


def test_quantized_checkpoints_are_not_run_unquantized(tmp_path):
    spec = {"results_dir": str(tmp_path), "train": {"num_epochs": 1}}
    trained = perform([LINE], "train", spec).files[0]
    changes = ["quantize.backend=modelopt", "quantize.mode=static_ptq", "quantize.calibration_items=4"]
    quantized = perform([LINE], "quantize", spec, changes).files[0]
    rounding = []
    for path in (trained, quantized):
        checkpoint = checkpoint_of(path)
        assert all(tensor.isfinite().all() for tensor in checkpoint.state_dict.values())
        network = predictor_of(checkpoint, tiny_runtime.Runtime(Spec())).module
        rounding.append([name for name, _ in network.named_modules() if "_quantizer" in name])
    assert not rounding[0]
    assert "linear.weight_quantizer" in rounding[1]
