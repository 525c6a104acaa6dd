"""The published classifier: its checkpoint made safe, its network, its mel front end."""

import copy
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mamba_seq.errors import ModelError
from mamba_seq.pipelines.speech import sc09
from mamba_seq.pipelines.speech.classifier import load_classifier
from mamba_seq.pipelines.speech.sc09_checkpoint import _tensors, convert_sc09, load_sc09

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> sc09.SC09ResNeXt:
    torch.manual_seed(0)
    network = sc09.SC09ResNeXt()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return network.eval()


def save(network: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the release has it: a DataParallel of a module whose classes are at models.resnext."""
    names = {sc09.SC09ResNeXt: "CifarResNeXt", sc09._Bottleneck: "ResNeXtBottleneck"}
    theirs = {cls: type(name, (cls,), {"__module__": "models.resnext"}) for cls, name in names.items()}
    module = types.ModuleType("models.resnext")
    module.__dict__.update({cls.__name__: cls for cls in theirs.values()})
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.resnext", module)
    copied = copy.deepcopy(network)
    for part in copied.modules():
        part.__class__ = theirs.get(type(part), type(part))
    torch.save(nn.DataParallel(copied), path)


def test_a_checkpoint_becomes_a_safe_folder(
    network: sc09.SC09ResNeXt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        save(network, tmp_path / "resnext.pth", patch)
    folder = convert_sc09(tmp_path / "resnext.pth", tmp_path / "sc09")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    x = torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        features, logits = load_sc09(folder)(x)
        expected = network(x)
    assert (features.shape, logits.shape) == ((3, 1024), (3, 10))
    assert torch.equal(features, expected[0])
    assert torch.equal(logits, expected[1])
    (tmp_path / "resnext.pth").unlink()
    classifier = load_classifier(str(folder), CPU)
    assert classifier.labels == sc09.DIGITS
    assert classifier(torch.randn(1, 16000))[0].shape == (1, 1024)


@pytest.mark.parametrize("inside", [lambda x: x, lambda x: {"state_dict": x, "epoch": 3}])
def test_a_dict_of_tensors_will_do(tmp_path: Path, inside: Any) -> None:
    torch.save(inside({"module.a": torch.ones(2)}), tmp_path / "x.pth")
    assert list(_tensors(tmp_path / "x.pth")) == ["module.a"]


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('ran')",)


def test_what_is_not_the_checkpoint_is_refused(network: sc09.SC09ResNeXt, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with pytest.raises(ModelError, match="is no file, expected the published checkpoint"):
        convert_sc09(path, tmp_path / "out")
    torch.save({"a": Evil()}, path)
    with pytest.raises(ModelError, match="cannot be read as a checkpoint of tensors"):
        convert_sc09(path, tmp_path / "out")
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ModelError):
        convert_sc09(path, tmp_path / "out")
    tensors = network.state_dict()
    del tensors["conv_1_3x3.weight"]
    torch.save(tensors, path)
    with pytest.raises(ModelError, match=r"conv_1_3x3\.weight is missing"):
        convert_sc09(path, tmp_path / "out")
    tensors["conv_1_3x3.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(tensors, path)
    with pytest.raises(ModelError, match=r"is \(64, 3, 3, 3\), expected \(64, 1, 3, 3\)"):
        convert_sc09(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_network_has_the_published_size(network: sc09.SC09ResNeXt) -> None:
    names = set(network.state_dict())
    assert "stage_2.stage_2_bottleneck_0.shortcut.shortcut_conv.weight" in names
    assert network.state_dict()["stage_3.stage_3_bottleneck_2.conv_conv.weight"].shape == (2048, 256, 3, 3)


def test_mel_filters_are_those_of_torchaudio() -> None:
    functional = pytest.importorskip("torchaudio").functional
    expected = functional.melscale_fbanks(1025, 0.0, 8000.0, 32, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(sc09.mel_filters(), expected.T.numpy(), atol=2e-6)


def test_spectrograms() -> None:
    t = torch.arange(16000) / 16000
    tone = torch.sin(2 * torch.pi * 1000 * t)[None]
    made = sc09.spectrograms(torch.cat([tone, 0.01 * tone, torch.zeros(1, 16000)]))
    assert made.shape == (3, 1, 32, 32)
    assert (made.amax().item(), made.amin().item()) == (0.0, -80.0)
    torch.testing.assert_close(made[0], made[1], atol=1e-3, rtol=0)
    assert (made[2] == 0).all()  # the same all over
    assert made[0, 0, :, 16].argmax() == np.abs(sc09.mel_filters()[:, 128]).argmax()  # the bin of 1 kHz
