"""Routed experts as kt-kernel computes them on GGUF blocks: its C++ class LLAMAFILE, by addresses.

Its wrapper needs a GPU, the class does not. Activations are bfloat16, as the wrapper passes them.
`pip install --no-deps kt-kernel` is enough. Its threads spin between calls, so it lives in a process of its own, which
is stopped while it is not asked.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing

GROUP_TOKENS = 4096


Inputs = list[tuple[torch.Tensor, ...]]


class KtExperts:
    """One layer's experts, in another process.

    Args:
        formats, gate, up, down, sizes, threads, chosen: as of `LocalExperts`; the tensors move to shared memory.

    Raises:
        OSError: kt-kernel is not installed, or has no such format.
    """

    def __init__(
        self, formats: tuple[str, str], gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor,
        sizes: tuple[int, int, int], threads: int, chosen: int,
    ) -> None:  # fmt: skip
        if find_spec("kt_kernel") is None:
            raise OSError("kt-kernel is not installed")
        context = torch.multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        operands = (
            formats,
            gate.share_memory_(),
            up.share_memory_(),
            down.share_memory_(),
            sizes,
            threads,
            chosen,
        )
        self._process = context.Process(target=_serve, args=(there, operands), daemon=True)
        self._process.start()
        there.close()
        self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise OSError("kt-kernel's process has died") from None
        if isinstance(answer, str):
            raise OSError(answer)
        os.kill(self._process.pid or 0, signal.SIGSTOP)
        return answer

    def _ask(self, *request: object) -> Any:
        os.kill(self._process.pid or 0, signal.SIGCONT)
        self._pipe.send(request)
        return self._answer()

    def load(self, inputs: Inputs) -> None:
        """Operands of the next calls: float32[T, K], integers and float32 [T, k] each."""
        self._ask("load", inputs)

    def seconds(self, budget: float) -> float:
        """Median of as many calls as fit the budget, at least two; the inputs take turns."""
        return float(self._ask("seconds", budget))

    def result(self) -> torch.Tensor:
        """float32[T, K] for the first inputs."""
        return torch.as_tensor(self._ask("result"))

    def close(self) -> None:
        """Ends the process."""
        os.kill(self._process.pid or 0, signal.SIGCONT)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, operands: tuple[Any, ...]) -> None:
    """Answers requests until its parent ends."""
    try:
        experts = LocalExperts(*operands)
    except OSError as error:
        pipe.send(str(error))
        return
    pipe.send(True)
    inputs: Inputs = []
    while True:
        what, *rest = pipe.recv()
        if what == "load":
            inputs = rest[0]
            pipe.send(True)
        elif what == "result":
            experts.prepare(*inputs[0])
            experts.run()
            pipe.send(experts.result().numpy())
        else:
            spent: list[float] = []
            while sum(spent) < rest[0] or len(spent) < 2:
                experts.prepare(*inputs[len(spent) % len(inputs)])
                start = time.perf_counter()
                experts.run()
                spent.append(time.perf_counter() - start)
            pipe.send(statistics.median(spent))


class LocalExperts:
    """One layer's experts.

    Args:
        formats: of gate and up, and of down.
        gate, up, down: the file blocks of all experts, uint8.
        sizes: experts E, hidden K, inner I.

    Raises:
        OSError: kt-kernel is not installed, or has no such format.
    """

    def __init__(
        self, formats: tuple[str, str], gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor,
        sizes: tuple[int, int, int], threads: int, chosen: int,
    ) -> None:  # fmt: skip
        try:
            from kt_kernel import kt_kernel_ext
        except ImportError as error:
            raise OSError("kt-kernel is not installed") from error
        types = kt_kernel_ext.kvcache.ggml_type.__members__
        names = [format.upper() for format in formats]
        if not all(name in types for name in names):
            raise OSError(f"kt-kernel has no {' or '.join(formats)}")
        count, hidden, inner = sizes
        if inner % 256 or hidden % 256:
            raise OSError("kt-kernel takes multiples of 256")
        pool = kt_kernel_ext.WorkerPoolConfig()
        pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [threads]
        self._infer: Any = kt_kernel_ext.CPUInfer(pool)
        self._mask = torch.zeros(count, dtype=torch.bool)
        config = kt_kernel_ext.moe.MOEConfig(count, chosen, hidden, inner, self._mask.data_ptr())
        config.layer_idx, config.pool = 0, self._infer.backend_
        config.m_block, config.group_min_len = 32, 10
        config.max_len = config.group_max_len = GROUP_TOKENS
        config.gate_proj, config.up_proj, config.down_proj = gate.data_ptr(), up.data_ptr(), down.data_ptr()
        config.gate_type = config.up_type = types[names[0]]
        config.down_type, config.hidden_type = types[names[1]], types["BF16"]
        self._moe: Any = kt_kernel_ext.moe.MOE(config)
        order = torch.arange(count, dtype=torch.int32)
        self._infer.submit(self._moe.load_weights_task(order.data_ptr()))
        self._infer.sync()

    def prepare(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> None:
        """Sets the operands of `run`: float32[T, K], integers and float32 [T, k]."""
        self._x, self._ids, self._weights = x.bfloat16().contiguous(), indices.long().contiguous(), weights
        self._y, self._tokens = torch.empty_like(self._x), torch.tensor([len(x)], dtype=torch.int32)
        self._task = (
            self._tokens.data_ptr(), indices.shape[1], self._ids.data_ptr(), weights.data_ptr(),
            self._x.data_ptr(), self._y.data_ptr(), False,
        )  # fmt: skip

    def run(self) -> None:
        """Computes; what the benchmark times."""
        self._infer.submit(self._moe.forward_task(*self._task))
        self._infer.sync()

    def result(self) -> torch.Tensor:
        """float32[T, K] of the last run."""
        return self._y.float()
