"""A made-up consortium of hospitals as raw eICU tables, so that it goes the same way as real data.

Latent conditions drive a stay's diagnoses, procedures and medications together and are the same everywhere; hospitals
differ in case mix, in coding habits, and in what they prescribe (formularies and order sets). The sizes follow Table 2
and Figure 1, the frequencies of codes those of the eICU demo. `sim/synthetic_raw.py` writes the tables.

A stay's conditions C with weights w give
    diagnoses, procedures   N of them, drawn without replacement from the mixture over C of each condition's codes
    medications             logit p_m = b_m + intensity + signal * sum_C w_c effect_cm + heterogeneity * habit_hm
with b_m such that medications are as frequent as in the demo. Procedures that name a drug follow the medications given.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy.special import ndtri

from shared_model.errors import unknown
from sim.synthetic_words import CONDITIONS, DRUG_CLASSES, EVERYONE, TREATMENT_GROUPS, TREATMENTS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

N_DIAGNOSES = 1161

# Rank and share of records that have the code, between which the logarithms are interpolated (the demo's marginals).
_DIAGNOSIS_SHARES = ((1, 0.138), (10, 0.070), (50, 0.015), (100, 0.0064), (200, 0.0024), (1161, 0.00008))
_PROCEDURE_SHARES = ((1, 0.170), (10, 0.067), (50, 0.030), (100, 0.015), (200, 0.0080), (500, 0.0018), (1061, 0.00015))
_MEDICATION_SHARES = (
    *((1, 0.79), (10, 0.44), (25, 0.24), (50, 0.119), (100, 0.060), (150, 0.034)),
    *((200, 0.022), (250, 0.015), (300, 0.006), (405, 0.0008)),
)


class SyntheticSettings(BaseModel, frozen=True, extra="forbid"):
    """How the consortium is made; frozen by calibration, see CONTRIBUTING."""

    signal: float = Field(
        1.0, ge=0, le=10, description="how strongly conditions speak through medications, against chance"
    )
    heterogeneity: float = Field(0.8, ge=0, le=10, description="how much hospitals differ in what they prescribe")
    coding_habits: float = Field(0.5, ge=0, le=3, description="deviation of a hospital's log preference among codes")
    case_mix: float = Field(0.6, ge=0, le=3, description="deviation of a hospital's log share of each condition")
    intensity: float = Field(0.7, ge=0, le=3, description="deviation of a stay's log odds of any medication")
    hospital_intensity: float = Field(
        0.4, ge=0, le=3, description="deviation of a hospital's log odds of any medication"
    )
    drug_named: float = Field(6.0, ge=1, description="how much likelier a procedure that names a given drug is")


def profile_sizes(profile: str, hospitals: int | None = None, records: int | None = None) -> list[int]:
    """Records of each hospital, ascending: Figure 1(a) for `paper`, a dozen uneven ones for `small`.

    Raises:
        TemptError: an unknown profile.
    """
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    own = PROFILES[profile]
    if hospitals is None and records is None:
        return list(own)
    count = hospitals if hospitals is not None else len(own)
    total = records if records is not None else round(sum(own) / len(own) * count)
    shape = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(own)), own)
    sizes = np.maximum(np.floor(shape * total / shape.sum()).astype(int), 1)
    sizes[-1] += total - int(sizes.sum())
    return sorted(int(size) for size in sizes)


def _paper_sizes() -> tuple[int, ...]:
    """80 hospitals with 102,363 records: 39 of 421 to 1,000, 28 to 2,000, 13 to 4,402, both ends attained."""
    small = np.linspace(421, 1000, 39).astype(int)
    medium = np.linspace(1001, 1960, 28).astype(int)
    large = (2001 + np.linspace(0, 1, 13) ** 3.3 * (4402 - 2001)).astype(int)
    sizes = np.concatenate([small, medium, large])
    missing, takers = 102_363 - int(sizes.sum()), np.arange(40, 66)
    sizes[takers] += missing // len(takers)
    sizes[takers[: missing % len(takers)]] += 1
    return tuple(int(size) for size in sorted(sizes))


PROFILES: dict[str, tuple[int, ...]] = {
    "paper": _paper_sizes(),
    "small": (60, 75, 90, 110, 130, 150, 180, 215, 260, 310, 370, 450),
}


def tilts(hospitals: int, draw: np.random.Generator) -> Floats:
    """Each hospital's inclination to prescribe: the normal distribution's quantiles in an order of chance."""
    return np.asarray(ndtri((draw.permutation(hospitals) + 0.5) / hospitals))


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """A generator whose stream belongs to this seed and purpose alone."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")))


@dataclass(frozen=True)
class Stays:
    """The coded content of one hospital's stays: a row a stay, True where it has the code."""

    diagnoses: Flags
    procedures: Flags
    medications: Flags


class World:
    """What is the same in every hospital: conditions, codes, and how they go together."""

    def __init__(self, seed: int, settings: SyntheticSettings) -> None:
        self.seed, self.settings = seed, settings
        draw = generator(seed, "world")
        self.prevalence = np.array([condition.weight for condition in CONDITIONS])
        self.prevalence /= self.prevalence.sum()
        areas = [set(condition.areas) for condition in CONDITIONS]
        shared = np.array([[len(a & b) for b in areas] for a in areas], dtype=float)
        # Comorbidity: common conditions, those of the same area, and pairs of chance
        self.comorbidity = self.prevalence * (1 + 3 * shared) * draw.lognormal(0, 1.0, shared.shape)
        np.fill_diagonal(self.comorbidity, 0)
        self.comorbidity /= self.comorbidity.sum(1, keepdims=True)
        self._draw_diagnoses(draw)
        self._draw_medications(draw)
        self._draw_procedures(draw)
        self._fit_frequencies()

    def _draw_diagnoses(self, draw: np.random.Generator) -> None:
        families = [(place, family) for place, condition in enumerate(CONDITIONS) for family in condition.families]
        variants = np.full(len(families), N_DIAGNOSES // len(families))
        variants[: N_DIAGNOSES - int(variants.sum())] += 1
        self.diagnosis_condition = np.repeat([place for place, _ in families], variants)
        self.diagnosis_family = np.repeat(np.arange(len(families)), variants)
        self.diagnosis_variant = np.concatenate([np.arange(n) for n in variants])
        self.diagnosis_words = [family for _, family in families]
        popularity = self.prevalence[self.diagnosis_condition] * np.exp(-1.1 * self.diagnosis_variant)
        popularity *= draw.lognormal(0, 0.6, N_DIAGNOSES)
        self.diagnosis_share = _by_rank(popularity, _DIAGNOSIS_SHARES)
        own = np.arange(len(CONDITIONS))[:, None] == self.diagnosis_condition
        self.diagnosis_affinity = np.where(own, 1.0, 0.003) * draw.lognormal(0, 0.3, own.shape)

    def _draw_medications(self, draw: np.random.Generator) -> None:
        self.drugs = [(name, drug) for name, group in DRUG_CLASSES.items() for drug in group.drugs]
        names = list(DRUG_CLASSES)
        self.drug_class = np.array([names.index(name) for name, _ in self.drugs])
        within = np.concatenate([np.arange(len(group.drugs)) for group in DRUG_CLASSES.values()])
        need = np.array([[1.0 if name in c.drug_classes else 0.0 for name in names] for c in CONDITIONS])
        everyone = np.array([3.0 if name in EVERYONE else 0.0 for name in names])
        popularity = (self.prevalence @ need * 20 + everyone * 2 + 0.15)[self.drug_class]
        popularity = popularity * np.exp(-0.55 * within) * draw.lognormal(0, 0.35, len(self.drugs))
        self.medication_share = _by_rank(popularity, _MEDICATION_SHARES)
        strength = draw.normal(0, 0.35, (len(CONDITIONS), len(self.drugs)))
        wanted = need[:, self.drug_class] * draw.uniform(1.2, 3.0, strength.shape)
        self.medication_effect = strength + wanted

    def _draw_procedures(self, draw: np.random.Generator) -> None:
        plain = [
            (area, f"{area}|{group}|{treatment.strip()}")
            for area, treatments in TREATMENTS.items()
            for treatment in treatments.split(";")
            for group in TREATMENT_GROUPS
        ]
        named = [f"{DRUG_CLASSES[name].path}|{drug}" for name, drug in self.drugs]
        self.procedures = [path for _, path in plain] + named
        self.procedure_drug = np.concatenate([np.full(len(plain), -1), np.arange(len(named))])
        affinity = np.full((len(CONDITIONS), len(self.procedures)), 0.01)
        for place, condition in enumerate(CONDITIONS):
            for column, (area, _) in enumerate(plain):
                if area in condition.areas or area == "general":
                    affinity[place, column] = 0.25 if area == "general" else 1.0
            for name in condition.drug_classes:
                affinity[place, len(plain) + np.flatnonzero(self.drug_class == list(DRUG_CLASSES).index(name))] = 1.0
        # A treatment stands for few of the conditions of its area
        self.procedure_affinity = affinity * draw.lognormal(0, 1.5, affinity.shape)
        spread = np.where(self.procedure_drug < 0, 0.0, 2.55)
        popularity = (self.prevalence @ self.procedure_affinity) * np.exp(
            draw.normal(0, 0.5, len(self.procedures)) + spread
        )
        popularity[len(plain) :] *= self.medication_share**0.5
        self.procedure_share = _by_rank(popularity, _PROCEDURE_SHARES)

    def _fit_frequencies(self) -> None:
        """Scale codes and medications until a sample of the consortium has them as often as the demo has."""
        draw = generator(self.seed, "fit")
        weights = np.concatenate([self.conditions(draw, self.case_mix(draw), 100) for _ in range(60)])
        intensity = draw.normal(0, self.settings.intensity, (60, 100))
        intensity += self.settings.hospital_intensity * tilts(60, generator(self.seed, "fit tilts"))[:, None]
        habit = np.repeat([self.habits(draw) for _ in range(60)], 100, axis=0)
        logits = self.settings.signal * weights @ self.medication_effect + habit + intensity.reshape(-1, 1)
        self.baseline = np.full(len(self.drugs), -2.0)
        for _ in range(40):
            share = _sigmoid(logits + self.baseline).mean(0)
            self.baseline += np.log(self.medication_share / share)
        given = draw.random(logits.shape) < _sigmoid(logits + self.baseline)
        self.diagnosis_scale, self.procedure_scale = self.diagnosis_share.copy(), self.procedure_share.copy()
        for _ in range(12):
            mixture = self.diagnosis_mixture(weights)
            self.diagnosis_scale *= self.diagnosis_share / self.diagnosis_share.sum() / mixture.mean(0)
            mixture = self.procedure_mixture(weights, given)
            self.procedure_scale *= self.procedure_share / self.procedure_share.sum() / mixture.mean(0)

    def case_mix(self, draw: np.random.Generator) -> Floats:
        """A hospital's shares of the conditions."""
        shares = self.prevalence * draw.lognormal(0, self.settings.case_mix, len(CONDITIONS))
        mix: Floats = shares / shares.sum()
        return mix

    def habits(self, draw: np.random.Generator) -> Floats:
        """A hospital's log odds of each medication beside the consortium's: its order sets and its formulary."""
        order_sets = draw.normal(0, 0.5, len(DRUG_CLASSES))[self.drug_class]
        # Rarer drugs have more substitutes, so that formularies differ most in them
        formulary = draw.normal(0, 1.0, len(self.drugs)) * np.where(self.medication_share > 0.2, 0.8, 1.5)
        habits: Floats = self.settings.heterogeneity * (order_sets + formulary)
        return habits

    def conditions(self, draw: np.random.Generator, mix: Floats, stays: int) -> Floats:
        """Each stay's conditions: one main one, and up to five that come with it, weaker."""
        weights = np.zeros((stays, len(CONDITIONS)))
        main = draw.choice(len(CONDITIONS), stays, p=mix)
        weights[np.arange(stays), main] = 1.0
        with_main = self.comorbidity[main] * mix / self.prevalence
        keys = _gumbel(draw, with_main)
        order = np.argsort(-keys, axis=1)[:, :5]
        count = np.minimum(draw.poisson(1.4, stays), 5)
        for place in range(5):
            rows = np.flatnonzero(count > place)
            weights[rows, order[rows, place]] = draw.uniform(0.4, 1.0, len(rows))
        return weights

    def diagnosis_mixture(self, weights: Floats) -> Floats:
        """Each stay's chance of each diagnosis code, as shares."""
        return _shares(weights @ _shares(self.diagnosis_affinity * self.diagnosis_scale))

    def procedure_mixture(self, weights: Floats, given: Flags) -> Floats:
        """Each stay's chance of each procedure, as shares; those that name a drug follow what was given."""
        mixture = weights @ _shares(self.procedure_affinity * self.procedure_scale)
        named = self.procedure_drug >= 0
        factor = np.where(given, self.settings.drug_named, 1 / self.settings.drug_named)
        mixture[:, named] *= factor[:, self.procedure_drug[named]]
        return _shares(mixture)

    def stays(self, hospital: int, count: int, tilt: float) -> Stays:
        """The coded content of a hospital's stays, each with at least one code of the head of every vocabulary.

        Args:
            tilt: the hospital's log odds of any medication, in deviations.
        """
        draw = generator(self.seed, "hospital", hospital)
        weights = self.conditions(draw, self.case_mix(draw), count)
        log_odds = self.settings.signal * weights @ self.medication_effect + self.habits(draw) + self.baseline
        log_odds += draw.normal(0, self.settings.intensity, (count, 1)) + tilt * self.settings.hospital_intensity
        given = draw.random(log_odds.shape) < _sigmoid(log_odds)
        head = self.medication_share >= np.sort(self.medication_share)[-60]
        _ensure(given, log_odds, head)
        diagnoses = self.diagnosis_mixture(weights) * draw.lognormal(0, self.settings.coding_habits, N_DIAGNOSES)
        procedures = self.procedure_mixture(weights, given) * draw.lognormal(
            0, self.settings.coding_habits, len(self.procedures)
        )
        richness = draw.normal(0, 0.2)
        has_diagnosis = _draw_sets(draw, diagnoses, _counts(draw, count, 0.95, 2.44 * np.exp(richness), 74))
        has_procedure = _draw_sets(draw, procedures, _counts(draw, count, 0.75, 6.21 * np.exp(richness), 133))
        head = self.procedure_share >= np.sort(self.procedure_share)[-800]
        _ensure(has_procedure, procedures, head)
        return Stays(has_diagnosis, has_procedure, given)

    @cached_property
    def diagnosis_codes(self) -> list[str]:
        """Every diagnosis code: an ICD-9 and an ICD-10 code of the same family, as eICU writes the pair."""
        codes = []
        for family, variant in zip(self.diagnosis_family, self.diagnosis_variant, strict=True):
            nine, ten, _ = self.diagnosis_words[family]
            dot = "" if "." in nine else "."
            codes.append(f"{nine}{dot}{(9 - variant) % 10}, {ten}.{variant}")
        return codes


def _by_rank(popularity: Floats, points: tuple[tuple[int, float], ...]) -> Floats:
    """Shares from a curve through (rank, share), the most popular first."""
    ranks = np.empty(len(popularity))
    ranks[np.argsort(-popularity, kind="stable")] = np.arange(1, len(popularity) + 1)
    x, y = np.log([rank for rank, _ in points]), np.log([share for _, share in points])
    return np.exp(np.interp(np.log(ranks), x, y))


def _counts(draw: np.random.Generator, stays: int, shape: float, mean: float, most: int) -> Integers:
    """How many codes each stay has: 1 and a negative binomial of this shape and mean."""
    return np.minimum(1 + draw.poisson(draw.gamma(shape, mean / shape, stays)), most)


def _draw_sets(draw: np.random.Generator, shares: Floats, counts: Integers) -> Flags:
    """For each row that many columns without replacement, by their shares (Gumbel's top k)."""
    keys = _gumbel(draw, shares)
    most = int(counts.max())
    best = np.argpartition(-keys, most - 1, axis=1)[:, :most]
    order = np.take_along_axis(best, np.argsort(-np.take_along_axis(keys, best, 1), axis=1), 1)
    chosen = np.zeros(shares.shape, dtype=bool)
    rows, place = np.nonzero(np.arange(most) < counts[:, None])
    chosen[rows, order[rows, place]] = True
    return chosen


def _ensure(chosen: Flags, scores: Floats, head: Flags) -> None:
    """Give rows without a column of the head the one of the highest score."""
    bare = np.flatnonzero(~chosen[:, head].any(1))
    chosen[bare, np.flatnonzero(head)[scores[np.ix_(bare, head)].argmax(1)]] = True


def _gumbel(draw: np.random.Generator, shares: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(shares) - np.log(draw.exponential(size=shares.shape))


def _shares(weights: Floats) -> Floats:
    total: Floats = weights / weights.sum(1, keepdims=True)
    return total


def _sigmoid(x: Floats) -> Floats:
    value: Floats = 1 / (1 + np.exp(-x))
    return value
