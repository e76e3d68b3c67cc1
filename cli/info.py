"""semprobe info: what a store holds and where it came from."""

from __future__ import annotations

from typing import Any

import click

from semprobe.cli import _common


@click.command(
    epilog="""\b
Examples:
  semprobe info acts.zarr
  semprobe info acts.zarr --verify
  semprobe info shards/ --layer -2
  semprobe info scores.zarr --json | jq .provenance.sae.sha256
"""
)
@click.argument("store")
@click.option("--verify", is_flag=True, help="Read every chunk and compare its checksum.")
@_common.shards
@_common.as_json
@_common.quiet
def command(
    store: str, verify: bool, layer: int | None, images: str | None, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """Say what a STORE or a directory of saev shards holds, how large it is and where its numbers come from."""
    from semprobe import stores

    data = _common.open_input(store, {"layer": layer, "images": images})
    if verify:
        parts = stores.verify(store)
        with _common.progress(sum(1 for v in data.data_vars.values() if v.chunks) * data.sizes.get("image", 0),
                              "verifying", quiet) as update:  # fmt: skip
            for _, start, stop in parts:
                update(stop - start)
    found = _describe(store, data)
    if verify:
        found["verified"] = True
    if as_json:
        _common.print_json(found)
        return
    shards = found.get("saev_protocol")
    form = f"saev shards, protocol {shards}" if shards else f"format version {found['version']}"
    click.echo(f"{store}: {found['kind']}, {form}, {_common.human_bytes(found['bytes'])}")
    click.echo(f"  {'  '.join(f'{dim} {size}' for dim, size in found['dims'].items())}")
    for name, labels in found["labels"].items():
        click.echo(f"  {name}: {labels['positive']} positive, {labels['negative']} negative")
    for key, value in _flat(found["provenance"]):
        click.echo(f"  {key}: {value}")
    for one in found["skipped"]:
        click.echo(f"  left out: {one['reason']}")
    if str(found["weights"]).startswith("random, seed"):
        click.echo("  RANDOM WEIGHTS: the activations mean nothing; for trying things out only")
    if verify:
        click.echo("  every chunk was read and its checksum is right")


def _describe(store: str, data: Any) -> dict[str, Any]:
    from semprobe.stores import Place

    labels = {}
    if "label" in data:
        for concept, column in zip(data["concept"].values, data["label"].values.T, strict=True):
            labels[str(concept)] = {"positive": int((column == 1).sum()), "negative": int((column == 0).sum())}
    came = data.attrs.get("provenance") or {}
    backbone = came.get("backbone") or came.get("activations", {}).get("backbone", {})
    return {
        "store": store, **data.attrs["semprobe_format"], "dims": dict(data.sizes), "bytes": Place(store).size(),
        "variables": sorted(map(str, data.variables)), "labels": labels, "provenance": came,
        "skipped": data.attrs.get("skipped", []), "weights": backbone.get("weights"),
    }  # fmt: skip


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, one in value.items():
        if key == "coordinates":
            continue
        found += _flat(one, f"{prefix}{key} ") if isinstance(one, dict) else [(prefix + key, one)]
    return found
