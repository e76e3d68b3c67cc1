"""Every dimension and variable, named once.

The attributes that stores carry and the tables of ``docs/store-format.md`` are printed from here, and
:func:`semprobe.open_store` checks a store against it.
"""

from __future__ import annotations

from typing import NamedTuple

DIMS = {
    "image": "one picture, named by its path",
    "patch": "one token of the backbone's grid, row by row",
    "feature": "a channel of the backbone",
    "latent": "a unit of the SAE",
    "concept": "what is looked for, such as wheel",
    "draw": "one randomly drawn latent",
    "choice": "one of the latents that splits chose most often",
    "byte": "eight latents",
    "permutation": "one permutation of the labels",
    "edge": "left, top, right, bottom",
}

EDGES = ("left", "top", "right", "bottom")

POSITIVE, NEGATIVE, UNLABELLED = 1, 0, -1


class Variable(NamedTuple):
    """What a variable is: its dims, its kind of dtype and one sentence."""

    dims: tuple[str, ...]
    kind: str
    text: str
    units: str = ""


VARIABLES = {
    # coordinates
    "image": Variable(("image",), "string", "path below the image root (absolute if elsewhere), with /; unique"),
    "concept": Variable(("concept",), "string", "name of the concept"),
    "latent": Variable(("latent",), "int64", "number of the latent in the SAE, from 0"),
    "label": Variable(
        ("image", "concept"), "int8", "1 positive, 0 negative, -1 not in this concept's set"
    ),
    "source": Variable(("image",), "string", "where the picture came from"),
    "sha256": Variable(("image",), "string", "SHA-256 of the image file's bytes, hexadecimal"),
    "width": Variable(("image",), "int32", "width of the picture after EXIF rotation", "pixel"),
    "height": Variable(("image",), "int32", "height of the picture after EXIF rotation", "pixel"),
    "alpha": Variable(("image",), "bool", "whether transparency was composited on white"),
    "crop": Variable(
        ("image", "edge"),
        "float64",
        "rectangle of the picture (after EXIF rotation) that the patches cover; may reach outside where a model pads",
        "pixel",
    ),
    "edge": Variable(("edge",), "string", "left, top, right, bottom"),
    "row": Variable(("patch",), "int32", "row of the patch in the grid, from the top"),
    "column": Variable(("patch",), "int32", "column of the patch in the grid, from the left"),
    # activations
    "activations": Variable(
        ("image", "patch", "feature"), "float32 or float16", "output of one residual block at each patch"
    ),
    "cls": Variable(("image", "feature"), "float32 or float16", "output of the same block at the class token"),
    "patch_label": Variable(
        ("image", "patch"), "uint8", "class of the patch, as saev's labels.bin has it; all 0 where saev had none"
    ),
    # latents
    "patch_sum": Variable(("image", "latent"), "float32", "sum over patches of the latent's code"),
    "patch_max": Variable(("image", "latent"), "float32", "largest code of the latent over patches"),
    "patch_argmax": Variable(
        ("image", "latent"), "int32", "first patch at which the code is largest; -1 where no code is above 0"
    ),
    # scores
    "tp": Variable(("concept", "latent"), "int32", "positives predicted positive"),
    "fp": Variable(("concept", "latent"), "int32", "negatives predicted positive"),
    "fn": Variable(("concept", "latent"), "int32", "positives predicted negative"),
    "tn": Variable(("concept", "latent"), "int32", "negatives predicted negative"),
    "f1": Variable(("concept", "latent"), "float64", "2 tp / (2 tp + fp + fn); always defined"),
    "precision": Variable(("concept", "latent"), "float64", "tp / (tp + fp); NaN where nothing is predicted positive"),
    "recall": Variable(("concept", "latent"), "float64", "tp / (tp + fn); always defined"),
    "support": Variable(("concept", "latent"), "float64", "share of the concept's images predicted positive"),
    "random_latent": Variable(("concept", "draw"), "int64", "latents drawn at random without replacement"),
    "random_f1": Variable(("concept", "draw"), "float64", "F1 of the latents drawn at random: the baseline"),
    "prediction_bits": Variable(
        ("image", "byte"), "uint8", "predictions of all latents, a bit each, the first latent in the highest bit"
    ),
    "threshold": Variable(
        ("concept", "latent"), "float32", "threshold of a sweep at which the latent's F1 is largest; absent without one"
    ),
    "top_vs_random_p": Variable(
        ("concept",), "float64", "Mann–Whitney p of the top 5 latents' F1 above the random latents'; descriptive"
    ),
    "p_value": Variable(
        ("concept", "latent"), "float64", "exact chance of at least as many true positives with labels dealt out at "
        "random, within sources where labels were permuted so"
    ),
    "q_value": Variable(("concept", "latent"), "float64", "smallest false discovery rate that includes the latent"),
    "p_max": Variable(
        ("concept", "latent"), "float64", "share of label permutations whose largest F1 of all latents is as high; "
        "times the number of concepts if the family is the study"
    ),
    "significant": Variable(("concept", "latent"), "bool", "whether p_max is at most alpha"),
    "null_max_f1": Variable(
        ("concept", "permutation"), "float64", "largest F1 of all latents under a permutation of the labels"
    ),
    "smallest_p": Variable(
        ("concept",), "float64", "smallest p_max that the labels allow: one over the ways to deal them out, times the "
        "number of concepts if the family is the study"
    ),
    "floor_f1": Variable(
        ("concept",), "float64", "F1 of a latent that fires on every image: 2 p / (1 + p), p the share of positives"
    ),
    # sizes of effects
    "auroc": Variable(
        ("concept", "latent"), "float64", "area under the ROC curve of the patch sum, ties counting one half"
    ),
    "average_precision": Variable(
        ("concept", "latent"), "float64", "average precision of the patch sum, equal sums being one threshold"
    ),
    "held_out_f1": Variable(
        ("concept",),
        "float64",
        "mean F1, over repeated stratified halves, of the latent that is best on one half, measured on the other; NaN "
        "where a class has fewer than two images",
    ),
    "held_out_low": Variable(("concept",), "float64", "5 % quantile of the held-out F1 over splits"),
    "held_out_median": Variable(("concept",), "float64", "median of the held-out F1 over splits"),
    "held_out_high": Variable(("concept",), "float64", "95 % quantile of the held-out F1 over splits"),
    "chosen_latent": Variable(
        ("concept", "choice"), "int64", "latents that were best on most halves; -1 where there were fewer"
    ),
    "chosen_share": Variable(("concept", "choice"), "float64", "share of halves on which that latent was best"),
    "f1_low": Variable(
        ("concept", "latent"),
        "float64",
        "lower end of the bootstrap interval of F1, conditional on the latent's selection; NaN where not computed",
    ),
    "f1_high": Variable(("concept", "latent"), "float64", "upper end of the same interval"),
    # confounds
    "source_association": Variable(
        ("concept",), "float64", "Cramér's V of label and source, from 0 to 1; NaN where sources tell nothing"
    ),
    "source_words": Variable(("concept",), "string", "whether label and source go together, in a sentence"),
    "within_source": Variable(
        ("concept",), "bool", "whether labels were permuted within sources; else over all of the concept's images"
    ),
    # other baselines
    "channel_f1": Variable(
        ("concept", "feature"), "float64", "F1 of the backbone's channel or of its negative, whichever is larger"
    ),
    "channel_auroc": Variable(("concept", "feature"), "float64", "AUROC of the same, whichever is larger"),
    "random_sae_f1": Variable(
        ("concept", "latent"), "float64", "F1 of a random direction that fires on as many patches as the latent"
    ),
}  # fmt: skip


def attrs(name: str) -> dict[str, str]:
    """Attributes of a variable as stores carry them."""
    variable = VARIABLES[name]
    found = {"description": variable.text}
    return {**found, "units": variable.units} if variable.units else found
