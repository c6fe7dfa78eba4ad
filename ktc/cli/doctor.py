"""`ktc doctor`: what this machine has, what ktc makes of it, what is amiss; with `--measure` its limits."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from ktc.cli.common import Json, Stages, print_json, reported

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PACKAGES = ("ktc", "torch", "transformers", "gguf", "triton")


def doctor(
    measure: Annotated[
        bool,
        typer.Option("--measure", help="measure bandwidth and arithmetic (seconds), and keep the figures"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what this machine has for ktc to use, and what is amiss with it."""
    with reported(as_json):
        from ktc import machine

        limits = machine.cached()
        if measure:
            with Stages() as stage:
                limits = machine.measure(progress=stage)
            machine.save(limits)
        data = _facts()
        data["limits"] = None if limits is None else asdict(limits)
        data["limits_file"] = str(machine.cache_file())
        data["advice"] = _advice(data)
        if as_json:
            print_json(data)
        else:
            _show(data)


def _facts() -> dict[str, Any]:
    import torch

    from ktc import _cpu, machine
    from ktc.devices import host_memory

    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        seen = torch.cuda.get_device_properties(index)
        gpus.append({"name": seen.name, "memory": seen.total_memory, "compute": f"{seen.major}.{seen.minor}"})
    try:
        pages = _HUGE_PAGES.read_text(encoding="ascii").partition("[")[2].partition("]")[0] or None
    except OSError:
        pages = None
    numbers, cores, quota, _, _ = _cpu.topology()
    return {
        "python": platform.python_version(),
        "packages": found,
        "processor": machine.processor(),
        "logical_cpus": len(os.sched_getaffinity(0)),
        "physical_cores": _cpu.physical_cores(),
        "threads": _cpu.threads(),
        "threads_why": _cpu.why_threads(),
        "cpu_quota": quota or None,
        "numa_nodes": {str(number): len(mine) for number, mine in zip(numbers, cores, strict=True)},
        "isa": _cpu.isa(),
        "isa_levels": list(_cpu.isa_levels()),
        "memory": host_memory(),
        "memory_available": machine.available_memory(),
        "huge_pages": pages,
        "huge_pages_obtained": machine.huge_pages_obtained(),
        "gpus": gpus,
    }


def _advice(data: dict[str, Any]) -> list[str]:
    """What a person could change; empty when nothing is amiss."""
    found = []
    if data["huge_pages"] == "never":
        found.append(
            f"transparent huge pages are off, which costs up to a third of the memory bandwidth on some machines: "
            f"`echo madvise > {_HUGE_PAGES}` as root"
        )
    elif data["huge_pages_obtained"] is not None and data["huge_pages_obtained"] < 0.9:
        found.append(
            f"only {data['huge_pages_obtained']:.0%} of a test allocation lay on 2 MiB pages: memory is fragmented "
            "or the system refuses them, which costs up to a third of the memory bandwidth on some machines"
        )
    if data["isa"] != data["isa_levels"][-1]:
        found.append(
            f"KTC_CPU_ISA holds the kernels at {data['isa']}; this machine has {data['isa_levels'][-1]}"
        )
    if data["isa_levels"][-1] == "generic":
        found.append("this processor has no AVX2: the kernels run in plain C++, which is slow")
    if data["threads"] < data["physical_cores"]:
        found.append(
            f"kernels use {data['threads']} of {data['physical_cores']} cores: {data['threads_why']}"
        )
    if data["limits"] is None:
        found.append("this machine's limits are not measured: `ktc doctor --measure`")
    return found


def _show(data: dict[str, Any]) -> None:
    from ktc.passes.sizes import size_words

    def size(nbytes: int | None) -> str:
        return "unknown" if nbytes is None else size_words(nbytes)

    names = ", ".join(f"{name} {text or 'not installed'}" for name, text in data["packages"].items())
    rows = [
        ("python", f"{data['python']}; {names}"),
        ("processor", f"{data['processor']}; {data['physical_cores']} cores, {data['logical_cpus']} CPUs"),
        (
            "kernels",
            f"{data['isa']} with {data['threads']} threads ({data['threads_why']}); levels here: "
            f"{', '.join(data['isa_levels'])}",
        ),
        *(
            [("numa", "; ".join(f"node {n}: {count} cores" for n, count in data["numa_nodes"].items()))]
            if len(data["numa_nodes"]) > 1
            else []
        ),
        ("memory", f"{size(data['memory'])}, {size(data['memory_available'])} available"),
        ("huge pages", f"{data['huge_pages'] or 'unknown'}; {_obtained(data['huge_pages_obtained'])}"),
        *(
            ("gpu", f"{g['name']}, {size(g['memory'])}, sm_{g['compute'].replace('.', '')}")
            for g in data["gpus"]
        ),
    ]
    for name, text in rows:
        print(f"{name:<12}{text}")
    if not data["gpus"]:
        print(f"{'gpu':<12}none")
    if data["limits"] is not None:
        limits = data["limits"]
        print(f"limits, measured {limits['when']} (kept in {data['limits_file']})")
        for run in limits["runs"]:
            bf16 = f", bf16 {run['bf16'] / 1e12:.2f} TFLOPS" if run["bf16"] else ""
            print(
                f"  {run['threads']} thread{'s' if run['threads'] > 1 else ''}: "
                f"{run['bandwidth'] / 1e9:.1f} GB/s ({run['streams']} streams a thread), "
                f"int8 {run['int8'] / 1e12:.2f} TOPS{bf16}, f32 {run['f32'] / 1e12:.2f} TFLOPS"
            )
        print(f"  {limits['huge_pages']:.0%} of the memory that was read lay on 2 MiB pages")
    for line in data["advice"]:
        print(f"note: {line}")


def _obtained(share: float | None) -> str:
    return (
        "how many ktc gets is unknown"
        if share is None
        else f"{share:.0%} of a test allocation lay on 2 MiB pages"
    )
