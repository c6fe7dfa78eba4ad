"""`ktc plan`: what goes where, in which format and on which kernel, and the bytes on every device."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from ktc.cli.common import Define, DumpTo, File, Json, Model, NoWeights, compile_file, print_json


def plan(
    file: File,
    define: Define = None,
    model: Model = None,
    no_weights: NoWeights = False,
    dump: DumpTo = None,
    as_json: Json = False,
) -> None:
    """Compile a `.kt` file and print the plan; nothing is loaded or written."""
    compiled, placement = compile_file(
        file, model=model, define=define, weights=not no_weights, dump=dump, as_json=as_json
    )
    if as_json:
        print_json(plan_json(compiled, placement))
    else:
        print_plan(compiled, placement)


def plan_json(compiled: Any, placement: Any) -> dict[str, Any]:
    """The plan as plain JSON: devices with bytes, sites with their attributes, rewrites, predicted speed, native
    segments, passes with seconds."""
    from ktc.machine import cached
    from ktc.predict import predict
    from ktc.runtime.segments import segments

    context = compiled.context
    read = decode_bytes(context)
    return {
        "model": type(compiled.skeleton).__name__,
        "layers": context.layers,
        "parameters": compiled.skeleton.num_parameters(),
        "tokens": placement.tokens,
        "cache_token_bytes": context.memory.token_bytes,
        "devices": {
            name: {
                "hardware": str(context.devices[name].torch_device), "weights": memory.weights, "cache": memory.cache,
                "activations": memory.activations, "peak": memory.peak, "memory": context.devices[name].memory,
                "reserve": context.devices[name].reserve, "decode_bytes": read.get(name, 0),
            }
            for name, memory in context.memory.devices.items()
        },
        "sites": rows(compiled),
        "rewrites": rewrites(compiled),
        "views": views(context),
        "predicted": predict(context, placement, cached()).to_json(),
        "segments": [asdict(segment) for segment in segments(placement)],
        "passes": [{"name": r.name, "seconds": r.seconds, "nodes": r.nodes_after} for r in compiled.records],
        "seconds": compiled.seconds,
    }  # fmt: skip


def rows(compiled: Any) -> list[dict[str, Any]]:
    """One row for each kind of site: layers that are treated alike are counted together."""
    grouped: dict[tuple[str, ...], dict[str, Any]] = {}
    for event in compiled.context.events:
        if event.kind != "lowered":
            continue
        data = event.data
        site = "+".join(_joined(data["sites"]))
        pattern = re.sub(r"\.\d+(?=\.|$)", "[*]", site)
        formats = "+".join(data["weights"].values())
        phase = event.stage.partition(".")[2]
        key = (pattern, data["device"], formats, data["kernel"], phase, str(data["rule"]))
        row = grouped.setdefault(
            key,
            {"sites": pattern, "device": data["device"], "format": formats, "kernel": data["kernel"],
             "phase": phase, "rule": data["rule"], "layers": [], "count": 0},
        )  # fmt: skip
        row["count"] += 1
        found = re.search(r"\.(\d+)(?=\.|$)", site)
        if found and int(found[1]) not in row["layers"]:
            row["layers"].append(int(found[1]))
    for row in grouped.values():
        row["layers"] = _ranges(row["layers"])
    return list(grouped.values())


def _joined(sites: list[str]) -> list[str]:
    """Sites of one fused node, short: the first whole, of the others the last name."""
    inner = [site for site in sites if not any(other.startswith(f"{site}.") for other in sites)]
    modules = [site for site in inner if not site.rpartition(".")[2].isdecimal()] or sites
    return [modules[0], *(site.rpartition(".")[2] for site in modules[1:])] if modules else ["(graph)"]


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}..{b}" for a, b in parts)


def rewrites(compiled: Any) -> list[dict[str, Any]]:
    """How often each rewrite fired and was refused."""
    found = []
    for event in compiled.context.events:
        if event.stage.startswith("rewrite.") and "fired" in event.data:
            found.append(
                {"name": event.stage[8:], "fired": event.data["fired"], "missed": event.data["missed"]}
            )
    return found


def views(context: Any) -> dict[str, int]:
    """How many weights are read through each view, by the op that asked for it."""
    from ktc.weights.views import to_json

    found: dict[str, int] = {}
    for weight in context.weights.values():
        for view in weight.assembly.views:
            name = to_json(view)["view"]
            found[name] = found.get(name, 0) + 1
    return found


def decode_bytes(context: Any) -> dict[str, int]:
    """Weight bytes that one decode step reads on each device; of experts only those a token uses."""
    found: dict[str, int] = {}
    for weight in context.weights.values():
        for store in weight.stores.values():
            found[store.device] = found.get(store.device, 0) + int(store.nbytes * weight.share)
    return found


def segment_lines(found: list[dict[str, Any]]) -> list[str]:
    """What runs natively and what as Python, a line a graph and up to three reasons."""
    lines = []
    for graph in dict.fromkeys(segment["graph"] for segment in found):
        mine = [segment for segment in found if segment["graph"] == graph]
        native, python = ([s for s in mine if s["native"] is kind] for kind in (True, False))
        name = "" if graph == "step" else f" of {graph}"
        ops, nodes = sum(s["ops"] for s in native), sum(s["nodes"] for s in python)
        line = f"native segments{name}: {len(native)} with {ops} ops"
        lines.append(f"{line}; {nodes} nodes as Python" if nodes else f"{line}; nothing is left to Python")
        reasons: dict[str, int] = {}
        for segment in python:
            for reason, count in segment["reasons"].items():
                reasons[reason] = reasons.get(reason, 0) + count
        most = sorted(reasons.items(), key=lambda item: -item[1])
        lines += [f"  {count} × {reason}" for reason, count in most[:3]]
        if len(most) > 3:
            lines.append(f"  and {len(most) - 3} more reasons: `--json` has them")
    return lines


def print_plan(compiled: Any, placement: Any) -> None:
    """The plan for people."""
    from rich.console import Console
    from rich.table import Table

    from ktc.machine import cached
    from ktc.passes.sizes import size_words
    from ktc.predict import predict

    data = plan_json(compiled, placement)
    console = Console(highlight=False, soft_wrap=False)
    width = None if console.is_terminal else 150
    console = Console(highlight=False, width=width)
    millions = data["parameters"] / 1e6
    size = f"{millions:,.1f} M" if millions < 10_000 else f"{millions / 1000:,.1f} B"
    console.print(
        f"{data['model']}: {data['layers']} layers, {size} parameters, KV cache for {data['tokens']} tokens "
        f"({size_words(data['cache_token_bytes'])} a token)\n"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (
        ("device", "left"), ("hardware", "left"), ("weights", "right"), ("KV cache", "right"), ("activations", "right"),
        ("peak", "right"), ("budget", "right"), ("read per token", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, row in data["devices"].items():
        budget = "unknown" if row["memory"] is None else size_words(row["memory"] - row["reserve"])
        sizes = [size_words(row[key]) for key in ("weights", "cache", "activations", "peak")]
        table.add_row(name, row["hardware"], *sizes, budget, size_words(row["decode_bytes"]))
    console.print(table)
    console.print()
    phases = any(row["phase"] for row in data["sites"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = ["sites", "layers", "device", "format", "kernel", "decided by", "nodes"] + (
        ["phase"] if phases else []
    )
    for name in columns:
        table.add_column(name, justify="right" if name == "nodes" else "left", overflow="fold")
    for row in data["sites"]:
        cells = [
            row["sites"],
            row["layers"],
            row["device"],
            row["format"],
            row["kernel"],
            row["rule"],
            str(row["count"]),
        ]
        table.add_row(*cells, *([row["phase"] or "every other"] if phases else []))
    console.print(table)
    if data["rewrites"]:
        console.print()
        fired = ", ".join(f"{r['name']} ×{r['fired']}" for r in data["rewrites"] if r["fired"])
        console.print(f"rewrites: {fired or 'none fired'}")
    if data["views"]:
        console.print(
            f"views of weights: {', '.join(f'{name} ×{count}' for name, count in data['views'].items())}"
        )
    for line in segment_lines(data["segments"]):
        console.print(line)
    console.print()
    for line in predict(compiled.context, placement, cached()).lines():
        console.print(line, soft_wrap=True)
    total = sum(compiled.seconds.values())
    console.print(f"compiled in {total:.2f} s (capture {compiled.seconds['capture']:.2f} s)")
