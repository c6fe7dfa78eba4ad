"""Whole models: prefill and decode of ktc beside llama.cpp (and torch eager bfloat16), with the error of each.

Rows are a model and a test ("pp512": a prompt of 512, "tg64": 64 tokens one by one). In a round ktc and the peer take
turns, and the bandwidth is measured before, between and after them, so a row's share of the bandwidth is that of its
own seconds. llama.cpp runs with and without repacked weights, with and without flash attention; a row shows its better
setting. Large models have random weights at the real shapes (`shapes.py`), the small ones are those of `make models`.

    python -m benchmarks.models --peer /path/to/python-with-llama-cpp [--models qwen3,mixtral] [--tests tg64,pp512]

On another machine, without a network: put llama-cpp-python (built there; it needs numpy, diskcache, jinja2) on the
path of some interpreter and name that with --peer (by default the one that runs this, with its PYTHONPATH). The full
Qwen3-30B-A3B shape on 16 cores, 18.6 GB of disk, 17.3 GiB of memory a side (file pages come on top, as a cache):

    python -m benchmarks.models --models qwen3 --layers 48 --threads 16 --tests tg64,pp512,pp2048 --folder /tmp/shapes

`--write` only makes the files. `--lock FILE` (may be repeated) holds the files' locks while something loads or is
timed, for machines on which several people measure. Speeds are of random tokens; errors are of 64 tokens of text, or,
for random weights, of random tokens on a model of the same matrices with few layers, 16 experts and 4096 tokens, whose
float32 form fits in memory.
"""

from __future__ import annotations

import argparse
import fcntl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import shapes
from benchmarks.machine import ROOT, header, load, save, table
from benchmarks.models_sides import (
    Bandwidth,
    Ours,
    Peer,
    Test,
    Work,
    agreement_ids,
    llama_cpp,
    torch_eager,
    work_of,
)
from ktc import _cpu
from ktc.eager import eager_model
from ktc.verify import TEXT, Agreement, compare_logits, encode, logits_of
from ktc.weights.opening import open_source

REAL = {
    "smollm2": ("SmolLM2-135M Q4_1", "SmolLM2-135M-Instruct.Q4_1.gguf", "LlamaForCausalLM", "llama"),
    "gemma3": ("Gemma-3-270M Q4_K_M", "gemma-3-270m.Q4_K_M.gguf", "Gemma3ForCausalLM", "gemma3"),
}
_BOTH = "tg64,pp512"
TESTS = {"smollm2": _BOTH, "gemma3": _BOTH, "qwen3": f"{_BOTH},pp2048", "mixtral": _BOTH, "deepseek": _BOTH}
FOLDER = ROOT / "models" / "shapes"
ERROR_TOKENS = 64
PAUSE = 0.05
"""Seconds that a peer's threads get to fall asleep."""


@dataclass(frozen=True)
class Model:
    """A file and how to read it; `small` is the one that errors are measured on."""

    title: str
    path: Path
    small: Path
    class_name: str
    library: str
    real: bool


@dataclass
class Row:
    """A test of one model beside one peer: seconds and bandwidths of every round."""

    model: Model
    test: Test
    peer: str
    work: Work
    touched: str = ""
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    their_bandwidth: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median over the rounds of how many times as fast ktc is."""
        return statistics.median(self._ratios())

    def _ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def cells(self, peak: float) -> tuple[str, ...]:
        """As cells of the table. `peak`: int8 operations a second."""
        tokens, ratios = self.test.tokens, self._ratios()
        times = f"**{self.ratio:.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        return (
            self.model.title, self.test.name, self.peer, times,
            _rates(tokens, self.ours), _rates(tokens, self.theirs),
            *self._limit(self.ours, self.bandwidth, peak), *self._limit(self.theirs, self.their_bandwidth, peak)[1:],
            self.touched,
        )  # fmt: skip

    def _limit(self, seconds: list[float], bandwidth: list[float], peak: float) -> tuple[str, str]:
        """What bounds the test, and the share of it that was reached: of bandwidth, or of arithmetic."""
        tokens = self.test.tokens
        if self.test.prompt:
            reached = 2 * (self.work.macs * tokens + self.work.last) / statistics.median(seconds)
            return f"{self.work.macs / 1e9:.3f} GMAC", f"{reached / 1e12:.3f} TOPS, {reached / peak:.0%}"
        rates = [self.work.nbytes * tokens / one for one in seconds]
        shares = [rate / limit for rate, limit in zip(rates, bandwidth, strict=True)]
        return (
            f"{self.work.nbytes / 1e6:.0f} MB",
            f"{statistics.median(rates) / 1e9:.1f} of {statistics.median(bandwidth) / 1e9:.1f} GB/s, "
            f"{statistics.median(shares):.0%}",
        )


COLUMNS = (
    "model", "test", "peer's better setting", "ktc is … times as fast", "ktc, tok/s", "peer, tok/s", "a token",
    "ktc reaches", "peer reaches", "experts touched",
)  # fmt: skip


def _rates(tokens: int, seconds: list[float]) -> str:
    rates = [tokens / one for one in seconds]
    return f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"


@contextmanager
def alone(locks: Sequence[str]) -> Iterator[None]:
    """Holds the locks of these files, taken in order."""
    with ExitStack() as stack:
        for name in locks:
            file = stack.enter_context(open(name, "a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def models(names: Sequence[str], options: argparse.Namespace) -> list[Model]:
    """The models named, their files written."""
    found = []
    for name in names:
        if name in REAL:
            title, file, class_name, library = REAL[name]
            path = ROOT / "models" / file
            found.append(Model(title, path, path, class_name, library, True))
            continue
        whole = shapes.SHAPES[name].cut(options.layers, 0, options.vocabulary)
        small = shapes.SHAPES[name].cut(max(1, 2 * whole.dense), min(16, whole.experts), 4096)
        path, reduced = (shapes.write(one, options.folder, _progress) for one in (whole, small))
        layers = (
            f"{whole.dense} dense and {whole.layers - whole.dense} MoE" if whole.dense else str(whole.layers)
        )
        title = f"{whole.title} shape, {layers} layers, " + ("Q4_K" if whole.latent else "Q4_K_M")
        found.append(Model(title, path, reduced, whole.class_name, whole.library, False))
    return found


REPACKED: dict[str, tuple[bool, ...]] = {"both": (True, False), "yes": (True,), "no": (False,), "none": ()}
"""By `--repack`: whether llama.cpp repacks its weights."""


def _progress(done: int, total: int) -> None:
    if done == total:
        print(f"  written: {total / 1e9:.1f} GB", file=sys.stderr)


def measure(model: Model, tests: Sequence[Test], options: argparse.Namespace) -> list[Row]:
    """The rows of one model, every peer with every setting."""
    tokens = max(test.tokens for test in tests)
    room = max(256, -(-tokens // 256) * 256)
    with alone(options.lock):
        ours = Ours(model.path, model.class_name, model.library, room, options.chunk)
        meter = Bandwidth()
    rows: list[Row] = []
    for repack in REPACKED[options.repack]:
        with (
            alone(options.lock),
            llama_cpp(options.peer, model.path, options.threads, repack, room, options.ubatch) as peer,
        ):
            rows += [_row(model, test, ours, peer, meter, options) for test in tests]
    if model.real and options.torch:
        with alone(options.lock), torch_eager(model.path, options.threads) as peer:
            rows += [_row(model, test, ours, peer, meter, options) for test in tests]
    return rows


def _row(
    model: Model, test: Test, ours: Ours, peer: Peer, meter: Bandwidth, options: argparse.Namespace
) -> Row:
    print(f"  {model.title}, {test.name}, {peer.name}", file=sys.stderr, flush=True)
    work = work_of(model.path)
    ours.seconds(test)
    peer.ask(test.what, peer.settings[0], min(test.tokens, 64))
    times = {setting: peer.ask(test.what, setting, test.tokens) for setting in peer.settings}
    setting = min(times, key=lambda name: times[name])
    row = Row(model, test, f"{peer.name}, {setting}", work)
    if work.expert and test.prompt:
        steps = -(-test.tokens // ours.model.prefill_chunk)
        touched = work.touched(ours.expert_bytes(test) / steps)  # with some activations
        row.touched = "" if touched is None else f"{touched:.0f} of {work.experts}"
    for _ in range(options.rounds):
        time.sleep(PAUSE)
        before = meter.now()
        row.ours.append(ours.seconds(test))
        between = meter.now()
        row.theirs.append(peer.ask(test.what, setting, test.tokens))
        time.sleep(PAUSE)
        after = meter.now()
        row.bandwidth.append((before + between) / 2)
        row.their_bandwidth.append((between + after) / 2)
    print(
        f"    {row.ratio:.2f}: {test.tokens / statistics.median(row.ours):.1f} tok/s",
        file=sys.stderr,
        flush=True,
    )
    return row


def better(rows: list[Row]) -> list[Row]:
    """Of the rows of a model, a test and a peer, the one in which the peer is the faster."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row.model.title, row.test.name, row.peer.partition(",")[0])
        if key not in best or statistics.median(row.theirs) < statistics.median(best[key].theirs):
            best[key] = row
    return list(best.values())


def errors(model: Model, options: argparse.Namespace) -> tuple[str, ...]:
    """Relative error of the logits, KL and agreement of ktc and llama.cpp against float32."""
    source = open_source(model.small)
    exact = eager_model(source)
    ids = (
        encode(source.tokenizer(), TEXT)[:, :ERROR_TOKENS]
        if model.real
        else agreement_ids(exact, ERROR_TOKENS)
    )
    expected = logits_of(exact, ids)
    del exact
    ours = Ours(model.small, model.class_name, model.library, 256, 0)
    found = {"ktc": compare_logits(expected, logits_of(ours.model, ids, ERROR_TOKENS // 4))}
    with tempfile.TemporaryDirectory() as name:
        for repack in REPACKED[options.repack]:
            with llama_cpp(options.peer, model.small, options.threads, repack, 256, 256) as peer:
                logits = peer.logits(ids, peer.settings[0], Path(name))
                found[peer.name] = compare_logits(expected, logits)
        if model.real and options.torch:
            with torch_eager(model.small, options.threads) as peer:
                found[peer.name] = compare_logits(expected, peer.logits(ids, "bf16", Path(name)))
    return model.title, *(_error(found[name]) if name in found else "" for name in ERRORS)


ERRORS = ("ktc", "llama.cpp, repack", "llama.cpp, no repack", "torch eager bf16")


def _error(found: Agreement) -> str:
    return f"{found.relative_error:.1e}; {found.kl_mean:.1e}; {found.top1:.0%}"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(TESTS), help=f"of {', '.join(TESTS)}; default: all")
    parser.add_argument("--tests", help="as tg64,pp512,pp2048; default: those of issue 4's table")
    parser.add_argument("--threads", type=int, default=0, help="of everybody; default: the physical cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=0, help="of the shapes; default: 8, 2 and 2")
    parser.add_argument("--vocabulary", type=int, default=0, help="of the shapes; default: the published one")
    parser.add_argument("--chunk", type=int, default=0, help="tokens of a prefill step of ktc")
    parser.add_argument("--ubatch", type=int, default=512, help="tokens of a prefill step of llama.cpp")
    parser.add_argument("--repack", choices=tuple(REPACKED), default="both", help="llama.cpp's")
    parser.add_argument("--peer", default=sys.executable, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files of shapes lie")
    parser.add_argument("--no-torch", dest="torch", action="store_false", help="without torch eager bf16")
    parser.add_argument("--no-errors", dest="errors", action="store_false")
    parser.add_argument("--write", action="store_true", help="make the files of shapes and end")
    parser.add_argument("--lock", action="append", default=[], metavar="FILE")
    parser.add_argument("--name", default="models", help="of the result's page")
    found = parser.parse_args()
    unknown = set(found.models.split(",")) - set(TESTS)
    if unknown:
        parser.error(f"no model {', '.join(sorted(unknown))}; there is {', '.join(TESTS)}")
    return found


def main() -> int:
    """Measures, prints and saves the tables."""
    options = arguments()
    if options.threads:
        _cpu.set_threads(options.threads)
    options.threads = _cpu.threads()
    names = options.models.split(",")
    chosen = models(names, options)
    if options.write:
        return 0
    text = header(
        "Whole models beside llama.cpp",
        f"threads: {options.threads} for everybody; medians (and ranges) of {options.rounds} rounds: ktc, peer, ktc, …",
        "random tokens; the prompt's last logits, or each token's; KV float16; decode starts on an empty cache",
        f"llama.cpp: ubatch {options.ubatch}, the better of its settings of repacking and flash attention",
        "bandwidth: read by as many threads right before and after each run; int8 peak: registers only",
    )  # fmt: skip
    with alone(options.lock):
        peak = _cpu.operations("int8", 0.3)
    rows: list[Row] = []
    for name, model in zip(names, chosen, strict=True):
        tests = [Test(one) for one in (options.tests or TESTS[name]).split(",")]
        rows += measure(model, tests, options)
    text += f"- int8 peak {peak / 1e12:.2f} TOPS; load average after {load()}\n\n"
    text += table(COLUMNS, [row.cells(peak) for row in better(rows)])
    if options.errors:
        text += (
            "\nErrors against float32 on the dequantised weights: relative error; KL in nats; same top-1\n\n"
        )
        with alone(options.lock):
            found = [errors(model, options) for model in chosen]
        text += table(("model", *ERRORS), found)
    save(options.name, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
