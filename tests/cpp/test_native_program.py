"""Native programs as C++ takes them: refused texts, refused steps, the functions of torch that they copy."""

from __future__ import annotations

import pytest
import torch

from ktc import _cpu

F32, I64 = 0, 3


def make(ops, shapes, *, externals, types=None, constants=None):
    """A program over one symbol; every view is a whole buffer. A shape holds numbers and "n"."""

    def number(size):
        return [0, 1] if size == "n" else [size, 0]

    buffers, views = [], []
    for index, shape in enumerate(shapes):
        kind = (types or {}).get(index, F32)
        item = 8 if kind == I64 else 4
        strides, total = [], [1, 0]
        for size in reversed(shape):
            strides.append(total)
            total = [total[0] * size, total[1] * size] if size != "n" else [0, total[0]]
        bytes_ = [item * term for term in total]
        tensor = (constants or {}).get(index)
        buffers.append(
            (2, bytes_, tensor.data_ptr()) if tensor is not None
            else (1 if index in externals else 0, bytes_, 0)
        )  # fmt: skip
        views.append((index, kind, [0, 0], [number(s) for s in shape], list(reversed(strides))))
    return _cpu.Program(1, buffers, views, ops, _cpu.Workspace())


def run(program, n, *tensors):
    program.run([n], [t.data_ptr() for t in tensors], [t.nbytes for t in tensors])


@pytest.mark.parametrize("n", [0, 1, 7, 3000])
def test_arithmetic_is_that_of_torch(n):
    torch.manual_seed(n)
    ops = [
        ("arithmetic", "a", [0, 1, 2], [2], []), ("scalar", "b", [2, 3], [3, 1], [0.3]),
        ("scalar", "c", [3, 4], [0, 0], [1e-3]), ("copy", "d", [4, 5], [], []),
    ]  # fmt: skip
    shapes = [("n", 33), (33,), ("n", 33), ("n", 33), ("n", 33), ("n", 33)]
    program = make(ops, shapes, externals={0, 1, 5})
    a, b, out = torch.randn(n, 33), torch.randn(33), torch.empty(n, 33)
    run(program, n, a, b, out)
    assert torch.equal(out, torch.tensor(0.3) / (a * b) + 1e-3)
    assert program.workspace_bytes([n]) <= 2 * -(-n * 33 * 4 // 64) * 64


def test_selection_checks_its_indices():
    ops = [("index_select", "pick", [0, 1, 2], [0], [])]
    program = make(ops, [(9, 4), ("n",), ("n", 4)], externals={0, 1, 2}, types={1: I64})
    x, index, out = torch.randn(9, 4), torch.tensor([8, 0, 8]), torch.empty(3, 4)
    run(program, 3, x, index, out)
    assert torch.equal(out, x[index])
    for bad in (-1, 9):
        with pytest.raises(IndexError, match=f"pick: index {bad} at place 1"):
            run(program, 3, x, torch.tensor([0, bad, 0]), out)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([("nothing", "x", [0], [], [])], "no op is called nothing"),
        ([("copy", "x", [0], [], [])], "takes other operands"),
        ([("copy", "x", [0, -1], [], [])], "is missing"),
        ([("copy", "x", [0, 7], [], [])], "no such operand"),
        ([("scalar", "x", [0, 1], [0, 0], [])], "takes other operands"),
        ([("copy", "x", [0, 2], [], [])], "writes a constant"),
    ],
)
def test_refuses_texts(ops, message):
    with pytest.raises(ValueError, match=message):
        make(ops, [("n",), ("n",), (4,)], externals={0, 1}, constants={2: torch.zeros(4)})


def test_refuses_numbers_of_other_programs():
    with pytest.raises(ValueError, match="wrong number of terms"):
        _cpu.Program(2, [(0, [4, 0], 0)], [], [], _cpu.Workspace())
    with pytest.raises(ValueError, match="no such buffer"):
        _cpu.Program(1, [], [(0, 0, [0, 0], [], [])], [], _cpu.Workspace())
    with pytest.raises(ValueError, match="no such kind"):
        _cpu.Program(1, [(5, [4, 0], 0)], [], [], _cpu.Workspace())
    with pytest.raises(ValueError, match="no such type"):
        _cpu.Program(1, [(0, [4, 0], 0)], [(0, 99, [0, 0], [], [])], [], _cpu.Workspace())


def test_refuses_steps():
    program = make([("copy", "x", [0, 1], [], [])], [("n",), ("n",)], externals={0, 1})
    x, y = torch.randn(4), torch.empty(4)
    with pytest.raises(ValueError, match="has 1 sizes"):
        program.run([4, 4], [x.data_ptr(), y.data_ptr()], [16, 16])
    with pytest.raises(ValueError, match="2 inputs and outputs"):
        program.run([4], [x.data_ptr()], [16])
    with pytest.raises(ValueError, match="input 1 of the step has 12 bytes and must have 16"):
        program.run([4], [x.data_ptr(), y.data_ptr()], [16, 12])
    with pytest.raises(ValueError, match="negative size"):
        run(program, -1, x, y)
    with pytest.raises(ValueError, match="input 0"):
        program.run([2**40], [x.data_ptr(), y.data_ptr()], [16, 16])
    with pytest.raises((ValueError, OverflowError)):
        run(program, 2**62, x, y)
    run(program, 4, x, y)
    assert torch.equal(x, y)


def test_a_view_cannot_leave_its_buffer():
    views = [(0, F32, [0, 0], [[0, 1]], [[2, 0]]), (1, F32, [0, 0], [[0, 1]], [[1, 0]])]
    buffers = [(1, [0, 4], 0), (1, [0, 4], 0)]
    program = _cpu.Program(1, buffers, views, [("copy", "x", [0, 1], [], [])], _cpu.Workspace())
    x = torch.zeros(8)
    with pytest.raises(ValueError, match="outside its buffer"):
        run(program, 8, x, x)


def test_operands_that_do_not_fit_name_the_op():
    program = make([("rms_norm", "norm", [0, 1, 0], [], [1e-5, 0.0])], [("n", 4), (5,)], externals={0, 1})
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="norm: rms_norm: `weight` must be contiguous float32"):
        run(program, 2, x, torch.zeros(5))
