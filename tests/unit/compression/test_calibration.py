from pathlib import Path

import numpy as np
import pytest

from serveprune.compression.calibration import load_samples
from serveprune.config.model import DatasetConfig, ModelConfig, OnnxSource
from serveprune.errors import ConfigError, InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import TensorSpec

INPUTS = (TensorSpec("x", Datatype.FP32, (-1, 3)),)


def dataset(path: Path, count: int, *, first: int = 0) -> DatasetConfig:
    np.savez(path, x=first + np.arange(3 * count, dtype=np.float32).reshape(count, 3))
    return DatasetConfig(file=path, samples=None)


def model(calibration: DatasetConfig | None = None, evaluation: DatasetConfig | None = None) -> ModelConfig:
    return ModelConfig(source=OnnxSource(onnx=Path("model.onnx")), calibration=calibration, evaluation=evaluation)


def test_samples_come_from_both_files_when_both_are_set(tmp_path: Path) -> None:
    described = model(dataset(tmp_path / "learn.npz", 8), dataset(tmp_path / "judge.npz", 5, first=100))
    samples = load_samples(described, inputs=INPUTS, preprocessor=None)
    assert samples.calibration is not None
    assert (len(samples.calibration), len(samples.evaluation)) == (8, 5)
    assert samples.evaluation_set == "judge.npz"


def test_a_quarter_is_held_out_and_said_so_when_there_is_no_evaluation_file(tmp_path: Path) -> None:
    samples = load_samples(model(dataset(tmp_path / "learn.npz", 40)), inputs=INPUTS, preprocessor=None)
    assert samples.calibration is not None
    learnt = {sample["x"].tobytes() for sample in samples.calibration.samples}
    judged = {sample["x"].tobytes() for sample in samples.evaluation.samples}
    assert (len(learnt), len(judged)) == (30, 10)
    assert not learnt & judged
    assert samples.evaluation_set == "learn.npz: 10 of its 40 samples, held out (no evaluation file is set)"


def test_an_evaluation_file_alone_is_never_learnt_from(tmp_path: Path) -> None:
    described = model(evaluation=dataset(tmp_path / "judge.npz", 5))
    assert load_samples(described, inputs=INPUTS, preprocessor=None).calibration is None


def test_loading_names_the_keys_when_there_are_no_samples() -> None:
    with pytest.raises(InvalidArgument, match=r"evaluation\.file.*calibration\.file"):
        load_samples(model(), inputs=INPUTS, preprocessor=None)


def test_loading_fails_when_nothing_can_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="at least 2 different samples"):
        load_samples(model(dataset(tmp_path / "learn.npz", 1)), inputs=INPUTS, preprocessor=None)


def test_loading_reports_arrays_that_do_not_fit_the_graph(tmp_path: Path) -> None:
    np.savez(tmp_path / "learn.npz", x=np.zeros((4, 2), dtype=np.float32))
    described = model(DatasetConfig(file=tmp_path / "learn.npz", samples=None))
    with pytest.raises(ConfigError, match=r"learn\.npz"):
        load_samples(described, inputs=INPUTS, preprocessor=None)


def values(path: Path, *numbers: int) -> DatasetConfig:
    np.savez(path, x=np.repeat(np.array(numbers, dtype=np.float32)[:, None], 3, axis=1))
    return DatasetConfig(file=path, samples=None)


def test_samples_that_are_judged_on_are_not_learnt_from(tmp_path: Path) -> None:
    described = model(values(tmp_path / "learn.npz", 1, 2, 3, 3), values(tmp_path / "judge.npz", 3, 4))
    samples = load_samples(described, inputs=INPUTS, preprocessor=None)
    assert samples.calibration is not None
    assert [int(sample["x"][0]) for sample in samples.calibration.samples] == [1, 2]
    assert len(samples.evaluation) == 2
    assert samples.evaluation_set == (
        "judge.npz (2 of the 4 samples of learn.npz are in it too, and were not learnt from)"
    )


def test_loading_refuses_a_calibration_set_that_is_the_evaluation_set(tmp_path: Path) -> None:
    described = model(values(tmp_path / "learn.npz", 1, 2), values(tmp_path / "judge.npz", 2, 1, 3))
    with pytest.raises(InvalidArgument, match=r"all 2 of learn\.npz are also in judge\.npz"):
        load_samples(described, inputs=INPUTS, preprocessor=None)


def test_equal_samples_are_held_out_together(tmp_path: Path) -> None:
    described = model(values(tmp_path / "learn.npz", *(number // 5 for number in range(40))))
    samples = load_samples(described, inputs=INPUTS, preprocessor=None)
    assert samples.calibration is not None
    learnt = {int(sample["x"][0]) for sample in samples.calibration.samples}
    judged = {int(sample["x"][0]) for sample in samples.evaluation.samples}
    assert (len(learnt), len(judged)) == (6, 2)
    assert not learnt & judged


def test_loading_fails_when_all_samples_are_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"at least 2 different samples.*got 1"):
        load_samples(model(values(tmp_path / "learn.npz", 7, 7, 7, 7)), inputs=INPUTS, preprocessor=None)
