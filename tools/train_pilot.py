"""Train the embedded pilot backbone and SAE, and write them to ``semprobe/data``.

    python tools/train_pilot.py            # about 25 minutes on 2 cores

The scenes are drawn from seeds that the pilot set never uses, and none has a spiral, so that a spiral is a concept
which neither the backbone nor the SAE can know. The backbone learns, for every patch, how much of each part it
covers and its mean colour, and for the whole image (class token) which parts it shows. The SAE is a BatchTopK
autoencoder of the patch tokens of the block that the pilot reads, shipped with the threshold that stands for its
batch rule at inference.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from semprobe import backbones, scenes

KNOWN = len(scenes.PARTS) - 1  # all but the spiral
PATCH = backbones.PILOT["patch_size"]
GRID = scenes.SIZE // PATCH
DATA = Path(backbones.__file__).parent / "data"


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One training scene: pixels (96, 96, 3) and per patch the covered share of each known part."""
    image, parts = scenes.draw_scene(f"train-{seed}")
    cells = parts.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    share = np.stack([(cells == k + 1).mean(1) for k in range(KNOWN)], 1)
    return np.asarray(image), share.astype(np.float16)


def draw_all(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    with ProcessPoolExecutor() as pool:
        pairs = list(pool.map(draw, range(number), chunksize=100))
    return torch.from_numpy(np.stack([p[0] for p in pairs])), torch.from_numpy(np.stack([p[1] for p in pairs]))


def to_input(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def train_backbone(pixels: torch.Tensor, shares: torch.Tensor, steps: int, batch: int = 64) -> nn.Module:
    model = backbones.pilot_vit()
    width = backbones.PILOT["embed_dim"]
    patch_head, image_head = nn.Linear(width, KNOWN + 3), nn.Linear(width, KNOWN)
    weights = [*model.parameters(), *patch_head.parameters(), *image_head.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=1.5e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=steps, pct_start=0.08)
    bce = nn.functional.binary_cross_entropy_with_logits
    for step in range(steps):
        at = torch.randint(len(pixels), (batch,))
        x, y = to_input(pixels[at]), shares[at].float()
        if step % 2:  # mirrored
            x, y = x.flip(3), y.view(batch, GRID, GRID, -1).flip(2).reshape(batch, GRID * GRID, -1)
        colour = x.view(batch, 3, GRID, PATCH, GRID, PATCH).mean((3, 5)).flatten(2).transpose(1, 2)
        tokens = model.forward_features(x)
        out = patch_head(tokens[:, 1:])
        loss = bce(out[..., :KNOWN], y, pos_weight=torch.tensor(4.0))
        loss = loss + 0.2 * (out[..., KNOWN:] - colour).square().mean()
        loss = loss + 0.1 * bce(image_head(tokens[:, 0]), (y.amax(1) > 0.1).float())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            click.echo(f"backbone {step}/{steps}: loss {loss.item():.4f}", err=True)
    return model.eval()


@torch.no_grad()
def patch_tokens(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Patch tokens (image * patch, feature) of the block that the pilot reads."""
    block = len(model.blocks) + backbones.DEFAULT_LAYER
    rows = []
    for at in range(0, len(pixels), 256):
        found = model.forward_intermediates(
            to_input(pixels[at : at + 256]), indices=[block], output_fmt="NLC", norm=False, stop_early=True,
            intermediates_only=True,
        )  # fmt: skip
        rows.append(found[0].reshape(-1, found[0].shape[-1]))
    return torch.cat(rows)


def train_sae(tokens: torch.Tensor, steps: int, latents: int, k: int, batch: int = 4096) -> dict[str, torch.Tensor]:
    """BatchTopK autoencoder (Bussmann et al. 2024, arXiv:2412.06410), dead latents revived by a second top k."""
    width = tokens.shape[1]
    b_dec = nn.Parameter(tokens[:100_000].mean(0))
    scale = (tokens[:100_000] - b_dec).norm(dim=1).mean().item() / width**0.5
    w_dec = torch.randn(latents, width)
    w_dec = nn.Parameter(w_dec / w_dec.norm(dim=1, keepdim=True))
    w_enc, b_enc = nn.Parameter(w_dec.detach().T.clone()), nn.Parameter(torch.zeros(latents))
    optimiser = torch.optim.Adam([b_dec, w_dec, w_enc, b_enc], lr=6e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1, s / 100, 5 * (steps - s) / steps))
    silent, threshold = torch.zeros(latents), torch.tensor(0.0)
    for step in range(steps):
        x = tokens[torch.randint(len(tokens), (batch,))]
        h = ((x - b_dec) / scale) @ w_enc + b_enc
        pre = h.relu()
        floor = pre.detach().flatten().topk(k * batch).values[-1]
        code = pre * (pre > floor)
        error = (x - b_dec) / scale - code @ w_dec
        loss = error.square().mean()
        dead = silent > 300
        if dead.any():
            spare = h[:, dead]
            top = spare.topk(min(32, spare.shape[1]), dim=1)
            again = torch.zeros_like(spare).scatter(1, top.indices, top.values.relu())
            loss = loss + (error.detach() - again @ w_dec[dead]).square().mean() / 32
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            w_dec /= w_dec.norm(dim=1, keepdim=True)
            silent = torch.where((code > 0).any(0), 0.0, silent + 1)
            threshold = 0.99 * threshold + 0.01 * floor if step > 100 else floor
        if step % 100 == 0:
            share = 1 - error.square().sum() / ((x - x.mean(0)) / scale).square().sum()
            click.echo(f"sae {step}/{steps}: explained {share:.3f}, dead {int(dead.sum())}", err=True)
    # relu((x - b_dec) W / scale + b) > t, as a threshold SAE that subtracts b_dec
    found = {"W_enc": w_enc / scale, "b_enc": b_enc, "W_dec": w_dec * scale, "b_dec": b_dec}
    return {**{name: t.detach().contiguous() for name, t in found.items()}, "threshold": threshold.detach().clone()}


@click.command(help=__doc__)
@click.option("--scenes", "number", default=30_000, show_default=True, help="Training scenes.")
@click.option("--steps", default=1800, show_default=True, help="Steps of the backbone, 64 scenes each.")
@click.option("--sae-steps", default=5000, show_default=True)
@click.option("--latents", default=1024, show_default=True)
@click.option("--k", default=8, show_default=True, help="Mean number of active latents a patch.")
@click.option("--sae-only", is_flag=True, help="Keep the backbone that is there.")
@click.option("--output", type=click.Path(path_type=Path), default=DATA, show_default=True)
def main(number: int, steps: int, sae_steps: int, latents: int, k: int, sae_only: bool, output: Path) -> None:
    torch.manual_seed(0)
    pixels, shares = draw_all(number)
    output.mkdir(exist_ok=True)
    if sae_only:
        model = backbones.pilot_vit(output / "pilot-vit.safetensors")
    else:
        model = train_backbone(pixels, shares, steps)
        state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, output / "pilot-vit.safetensors")
        model = backbones.pilot_vit(output / "pilot-vit.safetensors")  # as it will be used: from half precision
    sae = train_sae(patch_tokens(model, pixels[:12_000]), sae_steps, latents, k)
    threshold = sae.pop("threshold").item()
    about = {
        "format": "semprobe-sae", "version": "1", "activation": "threshold", "threshold": repr(threshold),
        "subtract_b_dec": "true", "backbone": "pilot", "layer": str(backbones.DEFAULT_LAYER),
    }  # fmt: skip
    save_file(sae, output / "pilot-sae.safetensors", metadata=about)


if __name__ == "__main__":
    main()
