"""`ktc explain FILE NODE`: which rule and line decided each attribute, what it overrode, and what each pass did."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from ktc.cli.common import Define, File, Json, Model, NoWeights, compile_file, print_json


def explain(
    file: File,
    node: Annotated[
        str,
        typer.Argument(
            help="a module (`model.layers.0.self_attn.q_proj`) or a node of a dump", metavar="NODE"
        ),
    ],
    define: Define = None,
    model: Model = None,
    no_weights: NoWeights = False,
    as_json: Json = False,
) -> None:
    """Say which rule and line decided what about a module, and follow it through every pass."""
    compiled, _ = compile_file(file, model=model, define=define, weights=not no_weights, as_json=as_json)
    context = compiled.context
    site = _site(node, compiled)
    if site is None:
        near = get_close_matches(node, list(context.sites), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        typer.echo(f"error: the model has no module or node `{node}`{hint}", err=True)
        raise typer.Exit(1)
    data = {
        "site": site,
        "class": context.sites[site].classes[0] if site in context.sites else None,
        "attributes": [
            _attribute(event) for event in context.events if event.kind == "applied" and event.subject == site
        ],
        "passes": _passes(site, node, compiled),
    }
    if as_json:
        print_json(data)
    else:
        _print(data)


def _site(node: str, compiled: Any) -> str | None:
    if node in compiled.context.sites:
        return node
    name = node.lstrip("%")
    for gm in (compiled.context.captured.module, *compiled.context.phases.values()):
        for found in gm.graph.nodes:
            if found.name == name:
                return str(found.meta.get("site", ""))
    for event in compiled.context.events:
        if event.data.get("node") == name:
            return str(event.subject)
    return None


def _attribute(event: Any) -> dict[str, Any]:
    return {
        key: event.data[key]
        for key in ("attribute", "phase", "value", "rule", "file", "line", "matched", "overrides")
    }


def _passes(site: str, node: str, compiled: Any) -> list[dict[str, Any]]:
    """Events about the site: by subject, by the sites a fused node carries, or by the node's name."""
    names = {node.lstrip("%")}
    found = []
    for event in compiled.context.events:
        data = event.data
        about = event.subject == site or site in data.get("sites", ()) or data.get("node") in names
        about = about or any(name.startswith(f"{site}.") for name in data.get("parts", ()))
        if not about or event.kind == "applied":
            continue
        names.update(str(data[key]) for key in ("node", "replaced_by") if key in data)
        found.append({"pass": event.stage, "kind": event.kind, **data})
    return found


def _print(data: dict[str, Any]) -> None:
    print(f"{data['site'] or '(root)'}: {data['class'] or 'node'}\n")
    if not data["attributes"]:
        print("  no rule speaks of it")
    for row in data["attributes"]:
        phase = f" on {row['phase']}" if row["phase"] else ""
        where = "" if row["matched"] == data["site"] else f", by matching `{row['matched'] or '**'}`"
        print(f"  {row['attribute']}{phase} = {row['value']}")
        print(f"      rule `{row['rule']}` at {row['file']}:{row['line']}{where}")
        for lost in row["overrides"]:
            print(f"      overrides {lost}")
    print()
    for row in data["passes"]:
        print(f"  {row['pass']:<28} {_sentence(row)}")


def _sentence(row: dict[str, Any]) -> str:
    kind = row["kind"]
    if kind == "fired":
        return f"{row['node']} became {row['replaced_by']} (rewrite `{row['rule']}`, {row['file']}:{row['line']})"
    if kind == "missed":
        return f"left {row['node']} alone: {row['reason']}"
    if kind == "format":
        change = (
            row["format"]
            if row["held"] == row["format"]
            else f"{row['held']} in the file, {row['format']} here"
        )
        return f"{row['weight']} is {change}"
    if kind == "folded":
        parts = " and ".join(re.sub(".weight$", "", part) for part in row["parts"])
        became = "became one weight" if len(row["parts"]) > 1 else f"is loaded as {row['made']}"
        return f"{parts} {became}, {row['weight']}"
    if kind == "lowered":
        why = (
            "picked by `kernel auto`"
            if row["rule"] == "auto"
            else f"rule `{row['rule']}`, {row['file']}:{row['line']}"
        )
        return f"{row['node']}: {row['op']} runs on {row['kernel']} on {row['device']} ({why})"
    if kind == "narrowed":
        return f"{row['node']}: only for the tokens whose logits are wanted"
    if kind == "transfer":
        return f"{row['value']} is copied from {row['source']} to {row['device']}"
    return ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("pass", "kind"))
