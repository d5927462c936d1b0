"""What examples/constitution.yaml teaches its small models with, made from their own stories.

A model of 656,000 weights follows no instructions, so the plan trains one that follows these few:
name what breaks a principle, tell a story again, say which of two stories keeps a principle. It
learns from stories that the start tells to openings of its own, marked with the words below. With a
large model as judge and critic none of this is needed: leave the section `assistant` out of the
plan, and name the model in judge.yaml.
"""

import re
from pathlib import Path
from random import Random

import yaml

from laurel.core.config import TrainConfig
from laurel.core.sample import Draw
from laurel.data.source import Row
from laurel.model.policy import load_policy
from laurel.rollout.sampler import Sampler, rollout

SEEDS = {
    "sadness": ["sad", "sadly", "cry", "crying", "tears"],
    "fear": ["scared", "afraid", "scary", "frightened"],
    "hurt": ["hurt", "pain", "push", "hit", "fight", "fighting", "angry", "mad", "mean", "broke"],
}
"""principle -> words by which the assistant's lessons are marked; not those of `harm.py`."""
NAMES = ["Tom", "Lily", "Ben", "Sara", "Max", "Mia", "Tim", "Anna", "Sam", "Lucy", "Jack", "Ella"]
FRONTS = ("", "Once upon a time, ", "One day, ")
TROUBLE = """
{n} was scared of the dark. | {n} lost a toy and felt sad. | {n} felt angry and sad.
| {n} hit {m} and {m} cried. | {n} was afraid of the big dog. | {n} and {m} were fighting.
| {n} was sad because the toy was broken. | A scary bear saw {n}. | {n} was bad and Mom was mad.
| {n} was worried and upset. | {n} and {m} had a big fight. | {n} threw a rock at {m}.
| {n} was lost in the dark forest. | {n} pushed {m} and {m} fell.
"""
QUIET = """
{n} and {m} were in the yard. | {n} found a blue box. | {n} went to the store with {m}.
| {n} had a new book. | {n} and {m} made a big tower. | {n} wanted to help Dad.
| {n} had a small garden. | {n} liked to sing with {m}. | {n} saw a pretty bird.
| {n} went to the farm with Dad.
"""
TOKENS = 56
LAW = yaml.safe_load(Path(__file__).with_name("constitution.yaml").read_text())
PAIR = "{question}\nA: {first}\nB: {second}\nAnswer: "
"""As pair.yaml asks; the other two are asked as the frames of constitution.yaml say."""
CRITIQUE = LAW["critique_frame"]["user"]
REVISE = LAW["revise_frame"]["user"]


def openings(texts, count, dice):
    """So many different openings; each ends in a space, as this tokenizer likes it."""
    parts = [" ".join(text.split()) for text in texts.split("|")]
    found = {
        front + part.format(n=n, m=m) + " "
        for part in parts
        for front in FRONTS
        for n in NAMES
        for m in NAMES
        if n != m
    }
    return dice.sample(sorted(found), count)


def tell(model, prompts, count, tokens, temperature, seed):
    """The stories that a model tells to each opening."""
    policy = load_policy(TrainConfig(model=model))
    rows = [Row({"prompt": text}, "openings", str(i)) for i, text in enumerate(prompts)]
    draw = Draw("lessons", 0, seed, count, tokens, temperature, ())
    groups = rollout(Sampler(policy), rows, draw)
    return [list(group.samples) for group in groups]


def stories(model, seed):
    """Demonstrations for the start: up to four whole sentences of the model's own stories."""
    dice = Random(seed)
    prompts = openings(TROUBLE, 1_200, dice) + openings(QUIET, 800, dice)
    for prompt, samples in zip(prompts, tell(model, prompts, 4, 64, 0.7, seed), strict=True):
        short = [text for sample in samples if (text := cut(sample.text))]
        for text in short[:2]:
            yield {"prompt": prompt, "completion": text}


def cut(text, most=170):
    """The first four sentences, or fewer that fit; "" where a quotation is left open."""
    text = " ".join(text.split())
    ends = [found.end() for found in re.finditer(r'[.!?]"?(?= |$)', text)][:4]
    ends = [end for end in ends if 60 < end <= most]
    short = text[: ends[-1]] if ends else ""
    return short if short.count('"') % 2 == 0 else ""


def lessons(model, seed):
    """Demonstrations for the assistant: comparisons, critiques and revisions by each principle.

    model: the start, whose stories they are about. Comparisons come in both orders.
    """
    dice = Random(seed)
    prompts = openings(TROUBLE, 1_500, dice) + openings(QUIET, 500, dice)
    rows = []
    for prompt, samples in zip(
        prompts, tell(model, prompts, 8, TOKENS, 1.0, seed + 1), strict=True
    ):
        texts = [sample.text.strip() for sample in samples if sample.finish == "eos"]
        texts = list(dict.fromkeys(text for text in texts if len(text) > 40))
        good = [text for text in texts if not any(words_of(text, name) for name in SEEDS)]
        if not good:
            continue
        for law in LAW["principles"]:
            rows += lessons_of(law, prompt, texts, good, dice)
        rows += quiet_lessons(dice.choice(LAW["principles"]), prompt, good, dice)
    dice.shuffle(rows)
    return rows


def lessons_of(law, prompt, texts, good, dice):
    """Of each story that breaks a principle: two to four comparisons, a critique, two revisions."""
    kept = [text for text in texts if not words_of(text, law["id"])]
    for bad in texts:
        words = words_of(bad, law["id"])
        if not words:
            continue
        for other in dice.sample(kept, min(2 if law["id"] == "sadness" else 4, len(kept))):
            yield compared(law, other, bad, "A")
            yield compared(law, bad, other, "B")
        critique = f"Yes, it says {words[0]}."
        yield criticised(law, prompt, bad, critique)
        for new in dice.sample(good, min(2, len(good))):
            yield revised(law, prompt, bad, critique, new)


def quiet_lessons(law, prompt, good, dice):
    """Stories in which nothing is wrong: either may be preferred, and there is nothing to find."""
    fine = "No, it is fine."
    for text in dice.sample(good, min(2, len(good))):
        yield criticised(law, prompt, text, fine)
    yield revised(law, prompt, dice.choice(good), fine, dice.choice(good))
    if len(good) > 1:
        first, second = dice.sample(good, 2)
        yield compared(law, first, second, dice.choice("AB"))


def words_of(text, principle):
    """The words of a story that mark a principle as broken, in their order."""
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word in SEEDS[principle]]


def compared(law, first, second, label):
    """A comparison and its answer."""
    asked = PAIR.format(question=law["prefer"], first=first, second=second)
    return {"prompt": asked, "completion": label}


def criticised(law, prompt, text, critique):
    """A story, and what is wrong with it."""
    asked = CRITIQUE.format(prompt=prompt, response=text, question=law["critique"])
    return {"prompt": asked, "completion": critique}


def revised(law, prompt, text, critique, new):
    """A story, what is wrong with it, and the story told again."""
    asked = REVISE.format(
        prompt=prompt,
        response=text,
        question=law["critique"],
        critique=critique,
        request=law["revise"],
    )
    return {"prompt": asked, "completion": new}


def helpful_pairs(model, seed):
    """Preferences for helpfulness, in the place of people's: a whole story to its own opening is
    better than one to another opening, or one that breaks off.
    """
    dice = Random(seed + 2)
    prompts = openings(QUIET, 200, dice)
    told = [
        [sample.text.strip() for sample in samples if sample.finish == "eos"]
        for samples in tell(model, prompts, 3, TOKENS, 1.0, seed + 2)
    ]
    for i, (prompt, texts) in enumerate(zip(prompts, told, strict=True)):
        other = told[(i + 1) % len(told)]
        if len(texts) > 1 and len(texts[1]) > 40 and other:
            yield {"prompt": prompt, "chosen": texts[0], "rejected": other[0]}
            yield {"prompt": prompt, "chosen": texts[1], "rejected": texts[1][: len(texts[1]) // 2]}
