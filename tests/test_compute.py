"""Precisions: which is fast on a device, and who is told."""

import pytest
import torch

from hebmtool import compute

CPU = torch.device("cpu")


@pytest.mark.parametrize("has", [True, False])
def test_where_bf16_is_slow_it_is_said_and_float32_is_fast(monkeypatch, capsys, has):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert compute.fast_precision(CPU) == ("bf16" if has else "float32")
    compute.tell_if_slow(CPU, "train_vae.precision", "bf16")
    assert ("set train_vae.precision=float32" in capsys.readouterr().err) is not has
    compute.tell_if_slow(CPU, "train_vae.precision", "float32")
    assert not capsys.readouterr().err


def test_shapes_alone_are_fast_in_bf16():
    assert compute.fast_precision(torch.device("meta")) == "bf16"
