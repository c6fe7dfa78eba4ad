"""Not a benchmark: the contenders of `models` behind one interface: ktc here, peers in processes of their own.

A peer sleeps on its standard input between its turns, so that it takes no core from the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import torch
from transformers import PreTrainedModel

import ktc
from benchmarks.machine import ROOT
from ktc import _cpu
from ktc.prefill import routed_experts
from ktc.runtime import bench
from ktc.runtime.graph_engine import GraphEngine
from ktc.runtime.model import PlacedModel
from ktc.weights.opening import open_source

PROGRAM = """model {class_name} from "{path}"
include "std/{library}.kt"
device host = cpu (memory = {memory})
rule everything {{ match ** place host }}
rule cache {{ match @attention cache paged(dtype = f16, tokens = {tokens}) }}
"""
"""Every weight in the format of its file, the default kernels, and llama.cpp's default KV format."""


@dataclass(frozen=True)
class Test:
    """A prompt of so many tokens ("pp512"), or so many tokens one by one ("tg64")."""

    name: str

    @property
    def prompt(self) -> bool:
        """Whether it is a prompt."""
        return self.name.startswith("pp")

    @property
    def tokens(self) -> int:
        """How many."""
        return int(self.name[2:])

    @property
    def what(self) -> str:
        """The request to a peer."""
        return "prefill" if self.prompt else "decode"


class Ours:
    """ktc's model of a file, in this process."""

    def __init__(self, path: Path, class_name: str, library: str, tokens: int, chunk: int) -> None:
        memory = f"{(2 * path.stat().st_size >> 30) + 4}GiB"
        text = PROGRAM.format(class_name=class_name, library=library, path=path, memory=memory, tokens=tokens)
        self.model = cast(PlacedModel, ktc.compile(text).load())
        if chunk:
            self.model._runner.prefill_chunk = chunk

    def seconds(self, test: Test) -> float:
        """One run."""
        return (bench._prompt if test.prompt else bench._generate)(self.model, test.tokens)

    def expert_bytes(self, test: Test) -> float:
        """Bytes that the routed experts read and write in one run, from the counters of the programs."""
        engine = self.model._runner.engine
        if not isinstance(engine, GraphEngine):
            return 0.0
        programs = [segment.program for graph in engine.programs.values() for segment in graph.segments]
        for program in programs:
            program.count(True)
        self.seconds(test)
        found = sum(c[4] for program in programs for c in program.counters() if c[1] == "experts")
        for program in programs:
            program.count(False)
        return float(found)


class Peer:
    """A process that answers `models_peer`'s requests."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        hello = self._answer()
        self.version: str = hello["version"]
        self.settings: list[str] = hello["settings"]

    def ask(self, what: str, setting: str, *rest: object) -> Any:
        """The answer to one request. Raises SystemExit when the peer has died."""
        if self._process.stdin is None:
            raise SystemExit(f"{self.name} has no standard input")
        self._process.stdin.write(json.dumps([what, setting, *rest]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}; its message is above")
        return json.loads(line)

    def logits(self, ids: torch.Tensor, setting: str, folder: Path) -> torch.Tensor:
        """float32[tokens, vocabulary] of ids int64[1, tokens]."""
        np.save(folder / "ids.npy", ids[0].numpy())
        self.ask("logits", setting, str(folder / "ids.npy"), str(folder / "logits.npy"))
        return torch.from_numpy(np.load(folder / "logits.npy"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


def llama_cpp(python: str, path: Path, threads: int, repack: bool, tokens: int, ubatch: int) -> Peer:
    """llama.cpp on a file, with or without repacked weights."""
    helper = str(Path(__file__).with_name("models_peer.py"))
    name = "llama.cpp, " + ("repack" if repack else "no repack")
    return Peer(
        name,
        [python, helper, "llama_cpp", str(path), str(threads), str(int(repack)), str(tokens), str(ubatch)],
    )


def torch_eager(path: Path, threads: int) -> Peer:
    """transformers in bfloat16 on a file."""
    return Peer(
        "torch eager bf16", [sys.executable, "-m", "benchmarks.models_torch", str(path), str(threads)]
    )


class Bandwidth:
    """The read bandwidth at this moment, on memory of large pages that no cache holds."""

    def __init__(self, region: int = 512 << 20) -> None:
        self._arena = _cpu.Arena(region)
        self._data = torch.frombuffer(self._arena.allocate(region), dtype=torch.uint8)
        self._data.fill_(1)
        self._region = region

    def now(self, seconds: float = 0.05) -> float:
        """Bytes a second: the better of one and two streams a thread."""
        address = self._data.data_ptr()
        return max(_cpu.read_bandwidth(address, self._region, streams, seconds) for streams in (1, 2))


@dataclass(frozen=True)
class Work:
    """What a token takes, from a file's headers.

    Attributes:
        nbytes: weights read for one token decoded.
        macs: multiply-adds for a token of a prompt, without attention's.
        last: those that a prompt needs for its last token alone: of the head, and of what follows the last attention.
        experts: of a layer; 0 for none.
        chosen: experts of a token.
        expert: bytes of one expert of every layer.
        layers: layers with experts.
    """

    nbytes: float
    macs: float
    last: float
    experts: int
    chosen: int
    expert: float
    layers: int

    def touched(self, nbytes: float) -> float | None:
        """Experts of a layer that a step of a prompt reads, from the bytes of all; None if only the last has any."""
        if self.layers < 2:
            return None
        each = self.expert / self.layers  # the last layer's serve one token
        return min(self.experts, (nbytes / each - self.chosen) / (self.layers - 1))


def work_of(path: Path) -> Work:
    """Of a GGUF file; an embedding is read only where it is the head too."""
    source = open_source(path)
    config = source.config()
    count, chosen = routed_experts(config)
    headers = source.headers()
    nbytes = macs = last = expert = 0.0
    head = "output.weight" if "output.weight" in headers else "token_embd.weight"
    behind = tuple(f"blk.{config.num_hidden_layers - 1}.{part}" for part in ("attn_output", "ffn_"))
    for name, header in headers.items():
        if name == "token_embd.weight" != head:
            continue
        routed = "_exps." in name
        part = chosen / count if routed else 1.0
        nbytes += header.nbytes * part
        products = float(np.prod(header.shape)) * part if len(header.shape) > 1 else 0.0
        if name == head or name.startswith(behind):
            last += products
        else:
            macs += products
        expert += header.nbytes / count if routed else 0.0
    layers = sum("ffn_down_exps." in name for name in headers)
    return Work(nbytes, macs, last, count if expert else 0, chosen, expert, layers)


def agreement_ids(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Random ids int64[1, tokens] of a model's vocabulary."""
    size = int(model.config.get_text_config().vocab_size)
    return torch.randint(3, size, (1, tokens), generator=torch.Generator().manual_seed(4))
