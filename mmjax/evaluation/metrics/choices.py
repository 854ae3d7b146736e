"""Rules that read a choice out of free text: yes or no (POPE), the letter of an option (ScienceQA)."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDE"


def says_no(prediction: str) -> bool:
    """POPE's reading of an answer (arXiv 2305.10355): "no" or "not" before the first full stop; anything else is a yes."""
    return not {"No", "no", "not"}.isdisjoint(prediction.split(".")[0].replace(",", "").split(" "))


def yes_no_counts(predictions: Sequence[str], truths: Sequence[bool]) -> dict[str, int]:
    """True and false positives and negatives, where yes is positive.

    Args:
      predictions: free text, read by `says_no`.
      truths: whether yes is right.

    Returns:
      {"true_yes", "false_yes", "true_no", "false_no"}.
    """
    counts = dict.fromkeys(("true_yes", "false_yes", "true_no", "false_no"), 0)
    for prediction, truth in zip(predictions, truths, strict=True):
        yes = not says_no(prediction)
        counts[("true" if yes == truth else "false") + ("_yes" if yes else "_no")] += 1
    return counts


def precision_recall(counts: dict[str, int]) -> dict[str, float]:
    """Precision, recall and F1 of yes, and the share of questions that were answered yes; 0 where nothing was counted."""
    right, said = counts["true_yes"], counts["true_yes"] + counts["false_yes"]
    there, asked = right + counts["false_no"], sum(counts.values())
    return {
        "f1": 2 * right / (said + there) if said + there else 0.0,
        "precision": right / said if said else 0.0,
        "recall": right / there if there else 0.0,
        "yes_ratio": said / asked if asked else 0.0,
    }


def option_letter(prediction: str) -> str:
    """The letter that an answer names, by the rule of LLaVA's ScienceQA evaluation (arXiv 2304.08485); "" = none.

    The whole text is a letter A to E, or it begins with one, a full stop and a space, or it says exactly once
    "The answer is X", followed by one more character.
    """
    if prediction and prediction in LETTERS and len(prediction) == 1:
        return prediction
    if prediction[:1] and prediction[0] in LETTERS and prediction[1:3] == ". ":
        return prediction[0]
    found = re.findall(r"The answer is ([A-Z]).", prediction)
    return found[0] if len(found) == 1 else ""


def chosen_option(prediction: str, options: Sequence[str]) -> str | None:
    """The option whose letter the prediction names, None if it names none or one beyond the last."""
    letter = option_letter(prediction)
    index = ord(letter) - ord("A") if letter else len(options)
    return options[index] if index < len(options) else None
