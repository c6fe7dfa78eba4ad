"""Routed experts as llama.cpp computes them: a ggml graph over the libraries that llama-cpp-python installs, by ctypes.

Gate, up and down are `mul_mat_id` on three-dimensional weights, as in its model graphs; the chosen experts' results are
weighted and added by views. Weights lie in an ordinary buffer, or in the CPU backend's repacked one.
"""

from __future__ import annotations

import ctypes
from ctypes import CDLL, POINTER, RTLD_GLOBAL, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12,
    "q5_k": 13, "q6_k": 14, "iq4_nl": 20, "iq4_xs": 23, "bf16": 30, "mxfp4": 39,
}  # fmt: skip
"""ggml's numbers of the formats."""
REPACKED = frozenset({"q4_0", "q4_k", "q2_k", "iq4_nl"})
"""Formats that ggml rearranges on x86; others crash it in that buffer, so they stay as they are, as in llama.cpp."""
_F32, _I32 = 0, 26


class _InitParams(Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


_SIGNATURES = {
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_new_tensor_3d": (c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64]),
    "ggml_mul_mat_id": (c_void_p, [c_void_p] * 4),
    "ggml_swiglu_split": (c_void_p, [c_void_p] * 3),
    "ggml_mul": (c_void_p, [c_void_p] * 3),
    "ggml_add": (c_void_p, [c_void_p] * 3),
    "ggml_cont": (c_void_p, [c_void_p] * 2),
    "ggml_view_2d": (c_void_p, [c_void_p, c_void_p, c_int64, c_int64, c_size_t, c_size_t]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_backend_alloc_ctx_tensors": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_backend_cpu_reg": (c_void_p, []),
    "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
}


class _Ggml:
    """The functions of the installed libraries; OSError where there are none."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __init__(self) -> None:
        spec = find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise OSError("llama-cpp-python is not installed")
        folder = Path(spec.origin).parent / "lib"
        self._libraries = [
            CDLL(str(folder / f"lib{name}.so"), RTLD_GLOBAL) for name in ("ggml-base", "ggml-cpu")
        ]
        for name, (result, arguments) in _SIGNATURES.items():
            for library in self._libraries:
                function = getattr(library, name, None)
                if function is not None:
                    function.restype, function.argtypes = result, arguments
                    setattr(self, name, function)
                    break
            else:
                raise OSError(f"{folder} has no {name}")

    def repacked_buffer_type(self) -> int | None:
        """The buffer type whose weights are rearranged as they are set, or None."""
        reg = self.ggml_backend_cpu_reg()
        address = self.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        device = self.ggml_backend_reg_dev_get(reg, 0)
        types = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device)
        name_of = self._libraries[0].ggml_backend_buft_name
        name_of.restype, name_of.argtypes = c_char_p, [c_void_p]
        index = 0
        while types and types[index]:
            if b"REPACK" in name_of(types[index]):
                return int(types[index])
            index += 1
        return None


@dataclass
class _Graph:
    context: int
    buffer: int
    graph: int
    x: int
    ids: int
    weights: int
    result: int


class GgmlExperts:
    """One layer's experts.

    Args:
        formats: of gate and up, and of down.
        gate, up, down: the file blocks of all experts, uint8.
        sizes: experts E, hidden K, inner I.
        repack: whether weights go to the repacked buffer type.

    Raises:
        OSError: no libraries, or no such buffer type or format in them.
    """

    def __init__(
        self, formats: tuple[str, str], gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor,
        sizes: tuple[int, int, int], threads: int, repack: bool,
    ) -> None:  # fmt: skip
        g = self._g = _Ggml()
        if not all(format in TYPES for format in formats):
            raise OSError(f"ggml has no {' or '.join(formats)}")
        count, hidden, inner = self._sizes = sizes
        self._backend = g.ggml_backend_cpu_init()
        self.set_threads(threads)
        kind = g.repacked_buffer_type() if repack else None
        if repack and (kind is None or not REPACKED & set(formats)):
            raise OSError("this ggml repacks nothing of it on this machine")
        self._weights, self._contexts, self._buffers = [], [], []
        shapes = ((hidden, inner), (hidden, inner), (inner, hidden))
        for format, shape, blocks in zip((formats[0], *formats), shapes, (gate, up, down), strict=True):
            context = g.ggml_init(_InitParams(1 << 16, None, True))
            tensor = g.ggml_new_tensor_3d(context, TYPES[format], *shape, count)
            if kind is not None and format in REPACKED:
                buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
            else:
                buffer = g.ggml_backend_alloc_ctx_tensors(context, self._backend)
            size = g.ggml_nbytes(tensor)
            if size != blocks.numel():
                raise OSError(f"ggml takes {size} bytes where there are {blocks.numel()}")
            g.ggml_backend_tensor_set(tensor, blocks.data_ptr(), 0, size)
            self._weights.append(tensor)
            self._contexts.append(context)
            self._buffers.append(buffer)
        self._graphs: dict[tuple[int, int], _Graph] = {}

    def set_threads(self, threads: int) -> None:
        """Of the next calls."""
        self._g.ggml_backend_cpu_set_n_threads(self._backend, threads)

    def _graph(self, tokens: int, chosen: int) -> _Graph:
        g = self._g
        _, hidden, _ = self._sizes
        context = g.ggml_init(_InitParams(4 << 20, None, True))
        x = g.ggml_new_tensor_3d(context, _F32, hidden, 1, tokens)
        ids = g.ggml_new_tensor_2d(context, _I32, chosen, tokens)
        weights = g.ggml_new_tensor_3d(context, _F32, 1, chosen, tokens)
        product = g.ggml_mul_mat_id
        gate, up, down = self._weights
        gated = g.ggml_swiglu_split(context, product(context, gate, x, ids), product(context, up, x, ids))
        parts = g.ggml_mul(context, product(context, down, gated, ids), weights)
        total = None
        for i in range(chosen):
            part = g.ggml_view_2d(context, parts, hidden, tokens, 4 * hidden * chosen, 4 * hidden * i)
            total = part if total is None else g.ggml_add(context, total, part)
        if chosen == 1:
            total = g.ggml_cont(context, total)
        graph = g.ggml_new_graph(context)
        g.ggml_build_forward_expand(graph, total)
        buffer = g.ggml_backend_alloc_ctx_tensors(context, self._backend)
        return _Graph(context, buffer, graph, x, ids, weights, int(total or 0))

    def prepare(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> None:
        """Sets the operands of `run`: float32[T, K], integers and float32 [T, k]."""
        g, key = self._g, (int(x.shape[0]), int(indices.shape[1]))
        if key not in self._graphs:
            self._graphs[key] = self._graph(*key)
        self._now = self._graphs[key]
        for tensor, value in ((self._now.x, x), (self._now.ids, indices.int()), (self._now.weights, weights)):
            value = value.contiguous()
            g.ggml_backend_tensor_set(tensor, value.data_ptr(), 0, value.numel() * 4)

    def run(self) -> None:
        """Computes; what the benchmark times."""
        if self._g.ggml_backend_graph_compute(self._backend, self._now.graph) != 0:
            raise RuntimeError("ggml did not compute the graph")

    def result(self) -> torch.Tensor:
        """float32[T, K] of the last run."""
        tokens = next(key[0] for key, graph in self._graphs.items() if graph is self._now)
        out = torch.empty(tokens, self._sizes[1])
        self._g.ggml_backend_tensor_get(self._now.result, out.data_ptr(), 0, out.numel() * 4)
        return out

    def close(self) -> None:
        """Frees weights and graphs."""
        g = self._g
        for graph in self._graphs.values():
            g.ggml_backend_buffer_free(graph.buffer)
            g.ggml_free(graph.context)
        for buffer in self._buffers:
            g.ggml_backend_buffer_free(buffer)
        for context in self._contexts:
            g.ggml_free(context)
        g.ggml_backend_free(self._backend)
