"""Declared devices on this machine: budgets, groups, hardware that is absent, hardware without kernels."""

from __future__ import annotations

import pytest
import torch
from ktc.grammar.diagnostics import KtError
from ktc.grammar.loading import load
from ktc.grammar.rules import Rules

from ktc.devices import host_memory, resolve

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def rules(text: str) -> Rules:
    return load(text + "\nrule all { match ** place host }\n", text=True)


def test_declared_budget() -> None:
    found = resolve(rules("device host = cpu (memory = 3GiB, reserve = 512MiB, threads = 2)"), planning=False)
    host = found["host"]
    assert (host.memory, host.reserve, host.declared, host.threads) == (3 << 30, 512 << 20, True, 2)
    assert host.hardware == "cpu" and str(host.ref) == "host"


def test_budget_of_the_machine() -> None:
    memory = host_memory()
    assert memory is not None and memory > 64 << 20
    host = resolve(rules("device host = cpu"), planning=False)["host"]
    assert host.memory == memory and not host.declared


def test_several_hosts() -> None:
    found = resolve(
        rules("device host = cpu (memory = 1GiB)\ndevice far = cpu (memory = 2GiB)"), planning=False
    )
    assert list(found) == ["host", "far"] and found["far"].memory == 2 << 30


def test_planning_takes_absent_hardware_as_declared() -> None:
    text = "device host = cpu\ndevice gpus = cuda:0..3 (memory = 80GiB)"
    found = resolve(rules(text), planning=True)
    gpus = [name for name in found if name.startswith("gpus")]
    assert len(gpus) >= 3 and found[gpus[0]].memory == 80 << 30
    assert [found[name].torch_device for name in gpus] == [torch.device("cuda", i) for i in range(len(gpus))]


@NO_CUDA
def test_absent_hardware_is_an_error_when_it_must_run() -> None:
    with pytest.raises(KtError) as caught:
        resolve(rules("device host = cpu\ndevice gpu = cuda:0"), planning=False)
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT302" and "cuda:0" in problem.message


def test_no_device() -> None:
    with pytest.raises(KtError) as caught:
        resolve(load("let a = 1\n", text=True), planning=True)
    assert [d.code for d in caught.value.diagnostics] == ["KT302"]
