"""How each project's checkpoints encode, exactly. ``docs/what-loads.md`` is this package in prose.

To add a format, write `is_…` and `read_…` in a module and put them in `FORMATS`. Sources: each project's own loader and
encoder; golden files of each are in ``tests/data``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from semprobe.formats.dictionary_learning import is_dictionary, read_dictionary
from semprobe.formats.overcomplete import is_overcomplete, read_overcomplete
from semprobe.formats.sae_lens import is_lens, is_prisma, read_lens, read_prisma
from semprobe.formats.saev import is_saev, is_semprobe, read_saev, read_semprobe
from semprobe.formats.sparsify import is_sparsify, read_sparsify

if TYPE_CHECKING:
    from semprobe.checkpoints import Options, Raw
    from semprobe.sae import SAE


class Format(NamedTuple):
    """A checkpoint format: whether a file is one, and how it is read."""

    name: str
    recognises: Callable[[Raw], bool]
    read: Callable[[Raw, Options], SAE]


FORMATS = (
    Format("saev (sae.pt: a JSON line, then tensors)", is_saev, read_saev),
    Format("semprobe (safetensors with metadata)", is_semprobe, read_semprobe),
    Format("ViT-Prisma (.pt with config.json)", is_prisma, read_prisma),
    Format(
        "dictionary_learning (ae.pt with config.json)",
        is_dictionary,
        read_dictionary,
    ),
    Format("sparsify (sae.safetensors with cfg.json)", is_sparsify, read_sparsify),
    Format("SAELens (sae_weights.safetensors with cfg.json)", is_lens, read_lens),
    Format("overcomplete (a state dict)", is_overcomplete, read_overcomplete),
)
