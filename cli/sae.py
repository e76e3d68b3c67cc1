"""semprobe sae: what an SAE is, and whether it fits some activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common

if TYPE_CHECKING:
    from semprobe.fit import Fit
    from semprobe.sae import SAE


@click.command(
    epilog="""\b
Examples:
  semprobe sae sae.pt
  semprobe sae hf://osunlp/SAE_CLIP_24K_ViT-B-16_IN1K --on acts.zarr
  semprobe sae saev-dinov2-vit-b14-reg --on acts.zarr --normalize probe --json
  semprobe sae overcomplete.pt --sae-kind topk --sae-k 32
"""
)
@click.argument("sae_path", metavar="SAE", required=False)
@click.option("--on", "store", metavar="ACTS", help="Activations to try it on.")
@_common.shards
@_common.sae_options
@_common.normalize
@click.option("--patches", type=click.IntRange(2), default=20_000, show_default=True, help="Sampled for --on.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of that sample.")
@click.option("--list", "listed", is_flag=True, help="List published SAEs by their short names, and stop.")
@_common.as_json
@_common.quiet
def command(
    sae_path: str | None, store: str | None, normalize: str, patches: int, seed: int, listed: bool, as_json: bool,
    quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Say what an SAE is: a local file or folder, hf://owner/name[/file], or a short name of a published one.

    With --on it is tried on a sample of patches: explained variance, codes a patch (L0), latents that never and that
    always fire, and in words whether it belongs to these activations.
    """
    if listed:
        _list(as_json)
        return
    if sae_path is None:
        raise click.UsageError("Missing argument 'SAE'.")
    sae = _common.load_sae(sae_path, options, decoder=store is not None)
    found = _describe(sae)
    if store is not None:
        found["on"] = {"store": store, **_try(sae, store, normalize, patches, seed, quiet, options)}
    elif normalize != "none" or any(value is not None for value in options.values()):
        raise click.UsageError("any of --normalize, --layer and --images is for activations and needs --on")
    if as_json:
        _common.print_json(found)
        return
    for name, value in found.items():
        if name != "on":
            click.echo(f"{name}: {value}")
    if store is not None:
        _tell(found["on"])


def _describe(sae: SAE) -> dict[str, Any]:
    """What it is; `normalisation` is the SAE's own."""
    found = {**sae.describe(), **{f"declared {key}": value for key, value in sae.declared.items()}}
    del found["declared"]
    k = getattr(sae.activation, "k", None)
    return {**found, "sparsity": f"{k} codes a patch at most" if k else "as the threshold leaves it"}


def _try(
    sae: SAE, store: str, normalize: str, patches: int, seed: int, quiet: bool, options: dict[str, Any]
) -> dict[str, Any]:
    from semprobe import normalisation
    from semprobe.encoding import check_fit
    from semprobe.fit import measure_fit, sample, words
    from semprobe.identity import mismatches

    data = _common.open_activations(store, options)
    check_fit(data["activations"], sae)
    shifted, described = _common.Normalisation(normalize).apply(data, None, quiet)
    drawn = sample(shifted["activations"], patches=patches, seed=seed)
    fit = measure_fit(drawn, sae)
    other: Fit | None = None
    if normalize == "none" and fit.explained_variance is not None:  # by the sample's own statistics: near enough
        other = measure_fit(normalisation.normalize(drawn, normalisation.statistics(drawn)), sae)
    differs = mismatches(data.attrs.get("provenance", {}).get("backbone", {}), sae.declared)
    return {
        **fit._asdict(), "normalisation": described, "verdict": words(fit, other), "mismatches": differs,
        "explained_variance_probe": other and other.explained_variance,
    }  # fmt: skip


def _tell(on: dict[str, Any]) -> None:
    click.echo(f"\non {on['patches']} patches of {on['images']} images of {on['store']}:")
    applied = on["normalisation"]
    if applied != "none":
        click.echo(f"  normalised first: {applied['kind']}, scale {applied['scale']:.4g}")
    click.echo(f"  codes a patch (L0): {on['l0']:.1f}")
    click.echo(f"  latents that fire on none of them: {on['dead']:.1%}, on all of them: {on['always_on']:.1%}")
    for one in on["mismatches"]:
        click.echo(f"  {one}")
    click.echo(f"  {on['verdict']}")


def _list(as_json: bool) -> None:
    from semprobe.hub import PUBLISHED

    if as_json:
        _common.print_json({name: one._asdict() for name, one in PUBLISHED.items()})
        return
    for name, one in PUBLISHED.items():
        click.echo(f"{name}: {one.address}; {one.backbone}, block {one.layer}, {one.tokens}")
        click.echo(f"  normalisation: {one.normalisation}; uncertain: {one.uncertain}")
