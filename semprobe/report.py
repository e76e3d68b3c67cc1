"""What a study's report says, as plain values: :mod:`semprobe.report_pages` makes pages of it.

Nothing is decided here that the stores, the manifest or the reviewers did not decide, but for one thing: where verdicts
of one latent differ it is disputed, and not validated.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from semprobe.assessment import NUMBERS
from semprobe.manifest import Row
from semprobe.report_pictures import Gallery
from semprobe.reviews import Agreement, Answer

STANDINGS = ("validated", "disputed", "rejected", "unclear", "no verdict", "not reviewed")
"""What reviewers' verdicts on a latent come to, best first."""

LATENT_COLUMNS = (
    "concept", "rank", "latent", "standing", "verdicts", *NUMBERS, "floor_f1", "random_f1_mean", "random_f1_p95",
    "null_max_f1_p95", "held_out_f1", "held_out_f1_p5", "held_out_f1_p95",
)  # fmt: skip
"""Of latents.csv, in order."""

_KINDS, _WORD = 8, 60  # sources or licences that are told of a concept, and letters of each


@dataclass(frozen=True)
class LatentPart:
    """A latent that is among the best of a concept or was reviewed for it."""

    latent: int
    rank: int
    numbers: dict[str, Any]
    answers: tuple[Answer, ...]
    galleries: tuple[Gallery, ...] = ()
    largest_code: float = 0.0

    @property
    def standing(self) -> str:
        """One of :data:`STANDINGS`."""
        return standing(self.answers)

    @property
    def verdicts(self) -> str:
        """Who said what, in words."""
        return ", ".join(f"{one.verdict or 'no verdict'} ({one.reviewer})" for one in self.answers) or "not reviewed"


@dataclass(frozen=True)
class ConceptPart:
    """What the report says of one concept that was scored; ``found`` is what ``semprobe score --json`` tells of it."""

    name: str
    found: dict[str, Any]
    latents: tuple[LatentPart, ...]
    svg: str = ""

    def of(self, *standings: str) -> list[LatentPart]:
        """Its latents of some standings, best first."""
        return [one for one in self.latents if one.standing in standings]

    @property
    def shown(self) -> list[LatentPart]:
        """Latents that get a section of their own."""
        return self.of("validated", "disputed")


@dataclass(frozen=True)
class Report:
    """Everything that the pages say."""

    study: str
    made: str
    concepts: tuple[ConceptPart, ...]
    design: tuple[dict[str, Any], ...]
    samplings: tuple[dict[str, Any], ...]
    processing: tuple[tuple[str, str], ...]
    tests: dict[str, Any]
    commands: tuple[str, ...]
    unscored: tuple[str, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    blinded: tuple[Answer, ...] = ()
    blinded_agreement: tuple[Agreement, ...] = ()
    elsewhere: tuple[Answer, ...] = ()
    notices: tuple[str, ...] = ()
    summary: tuple[str, ...] = field(default=())


def standing(answers: Iterable[Answer]) -> str:
    """What open verdicts on one latent come to: one of :data:`STANDINGS`.

    Validated or rejected only if everybody who gave a verdict says so; disputed if some validated it and others did
    not; unclear otherwise.

    Examples
    --------
    >>> standing([Answer("Ada", "wheel", 3, False, verdict="validated"), Answer("Ben", "wheel", 3, False)])
    'validated'
    """
    all_ = list(answers)
    said = {one.verdict for one in all_ if one.verdict}
    if not said:
        return "no verdict" if all_ else "not reviewed"
    if len(said) == 1:
        return said.pop()
    return "disputed" if "validated" in said else "unclear"


def filled(answers: Iterable[Answer]) -> list[Answer]:
    """Answers of which some field is not empty."""
    own = ("reviewer", "concept", "latent", "blinded", "at")
    return [one for one in answers if any(value for name, value in vars(one).items() if name not in own)]


def words(answer: Answer) -> list[tuple[str, str]]:
    """What an answer says besides its verdict, as far as it says anything, and how many pictures were picked.

    Examples
    --------
    >>> words(Answer("Ada", "wheel", 3, False, hypothesis="rims", pictures_for=("a", "b")))
    [('Hypothesis', 'rims'), ('Pictures picked', '2 for it')]
    """
    picked = {"for": len(answer.pictures_for), "against": len(answer.pictures_against)}
    found = {
        "Hypothesis": answer.hypothesis, "Evidence for": answer.evidence_for,
        "Evidence against": answer.evidence_against, "Failure modes": answer.failure_modes,
        "Edge cases": answer.edge_cases, "Caveats": answer.caveats,
        "Pictures picked": ", ".join(f"{number} {side} it" for side, number in picked.items() if number),
    }  # fmt: skip
    return [(name, text) for name, text in found.items() if text]


def older(answers: Iterable[Answer], created: str) -> str:
    """A sentence on answers that were given before the scores were made; empty without any.

    Parameters
    ----------
    created
        When the scores were made, as stores record it.

    Examples
    --------
    >>> older([Answer("Ada", "wheel", 3, False, at="2026-11-24T04:02:04.123+00:00")], "2026-11-24T04:00:00+00:00")
    ''
    """
    then = datetime.fromisoformat(created)
    number = sum(datetime.fromisoformat(one.at) < then for one in answers)
    if not number:
        return ""
    were = "answer was" if number == 1 else "answers were"
    return (
        f"{number} {were} given before these scores were made ({created[:16].replace('T', ' ')} UTC). If the SAE was "
        "another one then, they are about other latents."
    )


def wanted(answers: Iterable[Answer], concept: str, known: Container[int]) -> dict[int, tuple[Answer, ...]]:
    """Open answers on a concept by latent, of the latents that there are."""
    found: dict[int, list[Answer]] = {}
    for one in answers:
        if one.concept == concept and not one.blinded and one.latent in known:
            found.setdefault(one.latent, []).append(one)
    return {latent: tuple(sorted(those, key=lambda one: one.reviewer)) for latent, those in found.items()}


# the summary


def summarise(concepts: Sequence[ConceptPart], open_negatives: int) -> tuple[str, ...]:
    """The first paragraph, a sentence each: how many latents were validated, for which concepts, by whom."""
    names = [one.name for one in concepts]
    latents = concepts[0].found["latents"] if concepts else 0
    start = f"{latents:,} latents were scored for {counted(len(names), 'concept')} ({', '.join(names)})."
    answers = [one for concept in concepts for latent in concept.latents for one in latent.answers if one.verdict]
    unreviewed = sum(len(one.of("not reviewed", "no verdict")) for one in concepts)
    if not answers:
        told = ["No latent has been reviewed yet: nothing in this report is validated."]
    else:
        told = [_validated(concepts), _others(concepts)]
        if unreviewed:
            told.append(f"{counted(unreviewed, 'latent')} among the best had no verdict when this report was made.")
    if open_negatives:
        told.append(f"{counted(open_negatives, 'negative image')} that the scores rest on nobody has accepted.")
    return tuple(one for one in (start, *told) if one)


def _validated(concepts: Sequence[ConceptPart]) -> str:
    parts = []
    for concept in concepts:
        for one in concept.of("validated"):
            who = _and([answer.reviewer for answer in one.answers if answer.verdict])
            chance = "" if one.numbers["significant"] else "; its F1 is not significant"
            parts.append(f"latent {one.latent} for {concept.name} (by {who}{chance})")
    number = "None was" if not parts else "1 was" if len(parts) == 1 else f"{len(parts)} were"
    without = [one.name for one in concepts if not one.of("validated")]
    rest = f" For {_and(without)} there is none." if parts and without else ""
    return f"{number} validated{': ' if parts else ''}{'; '.join(parts)}.{rest}"


def _others(concepts: Sequence[ConceptPart]) -> str:
    counts = Counter(latent.standing for concept in concepts for latent in concept.latents)
    said = [f"{counts[word]} {word}" for word in ("disputed", "rejected", "unclear") if counts[word]]
    return f"Of the others reviewed, {_and(said)}." if said else ""


def counted(number: int, word: str) -> str:
    """A number and what is counted.

    Examples
    --------
    >>> counted(1, "concept"), counted(1200, "latent")
    ('1 concept', '1,200 latents')
    """
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _and(words: Sequence[str]) -> str:
    """Words as a list in a sentence."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}" if words else ""


# the design


def design(about: dict[str, Any], rows: Sequence[Row], used: Sequence[Row]) -> tuple[dict[str, Any], ...]:
    """A concept a row: criteria, images used and left out, by what verdict, and where they came from.

    Parameters
    ----------
    about
        What study.json says.
    rows, used
        Of the manifest: all, and those that the experiment uses.
    """
    found = []
    for concept in about["concepts"]:
        mine = [row for row in rows if row["concept"] == concept["name"]]
        here = [row for row in used if row["concept"] == concept["name"]]
        found.append({
            "concept": concept["name"], "criteria": concept["criteria"],
            **{label: _verdicts([row for row in here if row["label"] == label]) for label in ("positive", "negative")},
            "rejected": sum(row["verdict"] == "rejected" for row in mine),
            "spare": len([row for row in mine if row["verdict"] != "rejected"]) - len(here),
            "sources": _counts(row["source"] or "not recorded" for row in here),
            "licences": _counts(row["licence"] or "not recorded" for row in here),
            "verifiers": sorted({row["verified_by"] for row in mine if row["verdict"]}),
        })  # fmt: skip
    return tuple(found)


def _verdicts(rows: Sequence[Row]) -> dict[str, int]:
    counts = Counter(row["verdict"] for row in rows)
    return {"images": len(rows), "accepted": counts["accepted"], "unsure": counts["unsure"], "unseen": counts[""]}


def _counts(words: Iterable[str]) -> str:
    """The commonest words and how often each; images.csv has them whole."""
    counts = Counter(words).most_common()
    shown = [f"{word if len(word) <= _WORD else word[: _WORD - 1] + '…'} {number}" for word, number in counts[:_KINDS]]
    return ", ".join([*shown, *([f"{len(counts) - _KINDS} more"] if len(counts) > _KINDS else [])])


# where the numbers come from


def processing(came: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Terms and what they were, of the provenance of a store of scores; what it does not say is left out."""
    acts, sae = came.get("activations") or {}, came.get("sae") or {}
    backbone, tests = acts.get("backbone") or {}, came.get("tests") or {}
    found = [
        ("Backbone", backbone.get("model")),
        ("Weights", _joined(backbone.get("weights"), _hash(backbone.get("weights_sha256")))),
        ("Block", backbone.get("layer")),
        ("Transform", _pairs(backbone.get("transform"))),
        ("Grid of patches", " × ".join(map(str, backbone.get("grid") or ()))),
        ("Activations", acts.get("dtype")),
        ("SAE", _joined(sae.get("path"), _hash(sae.get("sha256")))),
        ("SAE's format", sae.get("origin")),
        ("SAE's size", f"{sae['features']:,} features, {sae['latents']:,} latents" if "latents" in sae else None),
        ("Encoding", sae.get("formula")),
        ("SAE's own normalisation", sae.get("normalisation")),
        ("Normalisation of activations", _pairs(came.get("normalisation"))),
        ("Prediction", _prediction(came.get("threshold"))),
        ("Forced", "; ".join(came.get("forced") or ())),
        ("Random latents", _joined(came.get("random"), f"seed {came['seed']}" if "seed" in came else None)),
        ("Tests", _pairs(tests)),
        ("Versions", _pairs(came.get("versions"))),
    ]
    return tuple((term, str(text)) for term, text in found if text not in (None, ""))


def _prediction(threshold: Any) -> str | None:
    if threshold is None:
        return None
    best = "each latent's best of some twenty thresholds; the test pays for the choice"
    return f"positive if the latent's codes sum to more than {best if threshold == 'sweep' else f'{threshold:g}'}"


def _hash(digest: str | None) -> str | None:
    return f"SHA-256 {digest}" if digest else None


def _joined(*parts: Any) -> str:
    return ", ".join(str(one) for one in parts if one not in (None, ""))


def _pairs(value: Any) -> str:
    """Settings in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_plain(one)}" for name, one in value.items())
    return "" if value is None else str(value)


def _plain(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return (" × " if all(isinstance(one, int) for one in value) else " / ").join(map(str, value))


def commands(study: str, about: dict[str, Any], came: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Commands that make it all again, in order.

    Parameters
    ----------
    study
        The folder, as a person would write it.
    about
        What study.json says.
    came
        Provenance of the stores of activations, latents and scores, as far as they are there.
    """
    concepts = [part for one in about["concepts"] for part in ("--concept", one["name"])]
    found = [shlex.join(["semprobe", "init", study, *concepts])]
    criteria = {one["name"]: one["criteria"] for one in about["concepts"]}
    for one in about["samplings"]:
        words = ["semprobe", "negatives", study, one["concept"], "--from", one["pool"], "--number", str(one["number"]),
                 "--seed", str(one["seed"])]  # fmt: skip
        said = (("--criteria", criteria.get(one["concept"])), ("--source", one.get("source")))
        found.append(shlex.join([*words, *(str(part) for name, text in said if text for part in (name, text))]))
    found += [str(one["command"]) for one in came if one.get("command")]
    return tuple(dict.fromkeys([*found, shlex.join(["semprobe", "report", study])]))


# the table


def latent_rows(concepts: Iterable[ConceptPart]) -> list[Row]:
    """Rows of latents.csv: every latent of the report with all its numbers; NaN and what is not known are empty."""
    found = []
    for concept in concepts:
        told, held = concept.found, concept.found["held_out_f1"]
        beside = {
            "floor_f1": told["floor_f1"], "random_f1_mean": told["random"]["mean"],
            "random_f1_p95": told["random"]["p95"], "null_max_f1_p95": told["null_max_f1"]["p95"],
            "held_out_f1": held["mean"], "held_out_f1_p5": held["p5"], "held_out_f1_p95": held["p95"],
        }  # fmt: skip
        for one in concept.latents:
            row = {"concept": concept.name, "rank": one.rank, "latent": one.latent, "standing": one.standing,
                   "verdicts": one.verdicts, **one.numbers, **beside}  # fmt: skip
            found.append({name: _number(row.get(name, "")) for name in LATENT_COLUMNS})
    return found


def _number(value: Any) -> str:
    return "" if value != value else str(value)
