"""SAEs on the Hugging Face hub: addresses, the cache, and short names of published vision SAEs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from semprobe.errors import SAEError

_DINOV2 = "vit_base_patch14_reg4_dinov2.lvd142m"


class Published(NamedTuple):
    """A published SAE and what is known of the activations that it was trained on."""

    address: str
    backbone: str
    layer: int
    tokens: str
    normalisation: str
    uncertain: str


PUBLISHED = {
    "saev-clip-vit-b16": Published(
        "hf://osunlp/SAE_CLIP_24K_ViT-B-16_IN1K", "ViT-B-16/openai", 10, "196 patches", "not settled: none or probe",
        "normalisation, and QuickGELU or GELU: ViT-B-16/openai ran with either, by open_clip's version",
    ),
    "saev-dinov2-vit-b14-reg": Published(
        "hf://osunlp/SAE_DINOv2_24K_ViT-B-14_IN1K", _DINOV2, 10, "256 patches at 224 pixels",
        "statistics of ImageNet activations, which the file lacks: probe, or a file of them",
        "the statistics; those of the probe images stand in",
    ),
    "saev-bioclip-vit-b16": Published(
        "hf://osunlp/SAE_BioCLIP_24K_ViT-B-16_iNat21", "hf-hub:imageomics/bioclip", 10, "196 patches",
        "not settled: none or probe", "normalisation",
    ),
    **{
        f"saev-dinov3-vit-{size}16-layer{layer}": Published(
            f"hf://osunlp/SAE_DINOv3_ViT-{size.upper()}-16_IN1K/layer_{layer}",
            f"vit_{name}_patch16_dinov3.lvd1689m", layer, "patches", "not settled: none or probe", "normalisation",
        )
        for size, name, layers in (
            ("s", "small", range(6, 12)), ("b", "base", range(6, 12)), ("l", "large", range(13, 24, 2))
        )
        for layer in layers
    },
}  # fmt: skip
"""Short name: where it is, block, tokens, normalisation that it needs, and what is uncertain."""

_ADDRESS = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<inside>.+?))?/?")
_PATIENCE = 5.0  # seconds for an answer of the hub; then the cache has to do
_WEIGHTS = (".safetensors", ".pt", ".pth", ".json")


def local_path(address: str) -> Path:
    """A path as it is, or that of a hub address once its files are in the cache.

    Raises
    ------
    SAEError
        No such address, repository or file, or the hub can't be reached and the cache lacks it.
    """
    if not address.startswith("hf://"):
        return Path(address)
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise SAEError(
            f"{address}: expected hf://owner/name[@revision][/file or folder], with %2F for a / in a revision"
        )
    repo, inside = found["repo"], found["inside"] or ""
    revision = unquote(found["revision"]) if found["revision"] else None
    names = _list(address, repo, revision)
    if names is None:
        return _cached(address, repo, revision, inside)
    return _download(address, repo, revision, inside, names)


def _list(address: str, repo: str, revision: str | None) -> list[str] | None:
    """Files of a repository, None where the hub can't be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        about = HfApi().model_info(repo, revision=revision, timeout=_PATIENCE)
        return [one.rfilename for one in about.siblings or ()]
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise SAEError(f"{address}: the hub has no such model, or not for you: {str(error).splitlines()[0]}") from error
    except Exception:  # whatever the network raises; the cache may do
        return None


def _cached(address: str, repo: str, revision: str | None, inside: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        found = Path(snapshot_download(repo, revision=revision, local_files_only=True)) / inside
        if not found.exists():
            raise FileNotFoundError(inside)
        return found
    except Exception as error:
        raise SAEError(
            f"{address}: the hub can't be reached (or HF_HUB_OFFLINE is set), and the cache in {HF_HUB_CACHE} lacks "
            f"it. Run `hf download {repo}` where there is internet, or give a local file"
        ) from error


def _download(address: str, repo: str, revision: str | None, inside: str, names: list[str]) -> Path:
    """A file with the configuration beside it, or the files of one folder; the rest of a repository stays there."""
    from huggingface_hub import hf_hub_download

    below = sorted(name for name in names if name.startswith(f"{inside}/" if inside else ""))
    folder = inside.rpartition("/")[0] if inside in names else inside
    if inside not in names:
        if not below:
            raise SAEError(f"{address}: the model has no such file or folder; it has {', '.join(names[:12])}")
        parents = sorted({name.rpartition("/")[0] for name in below if name.endswith(_WEIGHTS[:3])})
        if folder not in parents and len(parents) == 1:  # such as layer_10/<run>/sae.pt
            folder = parents[0]
        elif folder not in parents:
            where = f"in several folders, name one: {', '.join(parents[:12])}" if parents else "nowhere"
            raise SAEError(f"{address}: holds files that may be SAEs {where}")
    beside = [name for name in names if name.rpartition("/")[0] == folder and name.endswith(_WEIGHTS)]
    wanted = beside
    if inside in names:
        above = folder.rpartition("/")[0] if folder.rpartition("/")[2] == "checkpoints" else folder
        places = {folder, above}  # dictionary_learning has its configuration above the checkpoints of a run
        told = [name for name in names if name.rpartition("/")[0] in places and name.endswith(".json")]
        wanted = [inside, *(name for name in told if name != inside)]
    elif sum(not name.endswith(".json") for name in beside) > 4:
        raise SAEError(f"{address}: holds many files that may be the SAE, name one: {', '.join(beside[:12])}")
    try:
        local = [Path(hf_hub_download(repo, name, revision=revision)) for name in wanted]
    except Exception as error:
        raise SAEError(f"{address}: can't be downloaded: {(str(error) or repr(error)).splitlines()[0]}") from error
    return local[0] if inside in names else local[0].parent
