"""Words of captions, as the COCO caption evaluation counts them (arXiv 1504.00325), without its Java program.

It splits text by the rules of the Penn Treebank (Stanford's PTBTokenizer 3.4.1, lower-casing) and then drops the marks of
`DROPPED`. Brackets come out as "-lrb-" and "-rrb-", which that list, in capitals, does not catch: they count as words.
One thing differs on purpose: whether the full stop after a single letter at the end of a caption belongs to it hangs, in the
original, on the caption in the next line of its input; here it does not belong to it.
"""

from __future__ import annotations

import re

DROPPED = frozenset(("''", "'", '"', "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

# Words that keep the full stop behind them, however they are written, and those that do so only with a capital.
_ABBREVIATIONS = """
adj adm adv al ala alex apr ariz assn assoc asst attys aug ave bancorp bhd bldg blvd brig bros calif capt cf cie cmdr co col
colo comdr conn corp cos cpl ct dak dec dept depts det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc
ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms
msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty ptys pvt rd rep reps rev rt sen
sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs tue tues univ va vs vt wed wis wisc wm wyo
""".split()
_CAPITAL_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash".split()

_PART = r"(?:[dDoOlL]'(?=[^\W_]))?[^\W_]+"  # of a word with hyphens: letters and digits, o'clock
_WORD = rf"{_PART}(?:[-_]{_PART})*"
_CLITIC = r"(?:'(?:s|m|d|re|ve|ll)|n['`]t)(?!\w)"
_ADDRESS = r"[^\s\"<>()]*[^\s\"<>().,;:!?]"

# At each place the first rule that matches takes the text; what is behind (?=…) is left for the next match.
_RULES = {
    "addresses": rf"https?://{_ADDRESS}|www\.{_ADDRESS}",
    "mail and names": r"[\w.]+@[^\W_]+(?:\.[^\W_]+)*|[#@][A-Za-z]\w*",
    "tags": r"</?[A-Za-z][^<>]*>",
    "rock 'n' roll, the '90s": r"(?i:\brock'n'roll|'n'|'(?:n|em|cause|till?|\d0s)\b)",
    "words with an apostrophe": r"\b(?i:ol'|somethin'|ev'ry|li'l|c'mon)(?!\w)",
    "first halves: 't is, y' all": r"(?i:'t(?=(?:is|was)\b)|\by'(?=[a-z]))",
    "first halves: can not, gon na": r"\b(?i:can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:gim|lem)(?=me\b))(?!\w+[-'])",
    "clitics: 's, n't": rf"(?i:{_CLITIC})",
    "words before a clitic": rf"(?i:[^\W\d_]+?(?={_CLITIC}))",
    "ma'am": r"[^\W\d_]*[aeiouyAEIOUY]'[aeiou][^\W\d_]*",
    "R&B": r"[A-Z]+(?:&[A-Z]+)+",
    "u.s., plan b.": r"[A-Za-z](?:\.[A-Za-z])+\.(?:-[^\W_]+)*(?!\w)|(?<![\w.])[A-Za-z]\.(?=\s+[^A-Z\s])",
    "no. 5, ph.d.": r"\b(?i:nos?\.(?=\s*\d)|(?:ed|ph)\.d\.)",
    "abbreviations": rf"\b(?:(?i:{'|'.join(_ABBREVIATIONS)})|{'|'.join(_CAPITAL_ABBREVIATIONS)})\.(?![A-Za-z])",
    "court.he": r"[^\W\d_]+(?:\.[^\W\d_][^\W_]*)+",
    "1,000 and 12:30 and -5": r"(?:(?<![\w.])[-+])?\d*(?:[.,:]\d+)+|(?<![\w.])[-+]\d+(?![-\w])",
    "words, and words with a slash": rf"{_WORD}(?:/{_WORD})*",
    "dots": r"\.(?:\s?\.){2,}|…",
    "dashes": r"[-–—]{2,}|[–—]",
    "runs of one mark": r"[!?]+|\*+|_+|''|``",
    "all else": r"\S",
}
_TOKEN = re.compile("|".join(_RULES.values()))
_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "…": "...", "€": "$", "£": "#",
    "¢": "cents", "“": "``", "”": "''", "«": "``", "»": "''", "½": "1/2", "¼": "1/4", "¾": "3/4",
}  # fmt: skip
_QUOTES = str.maketrans("’‘", "'`")


def words(caption: str) -> list[str]:
    """The words of a caption: lower case, clitics apart ("is n't", "dog 's"), punctuation dropped.

    Args:
      caption: as people or models write it; newlines count as spaces.
    """
    tokens = (_written(match) for match in _TOKEN.findall(caption.translate(_QUOTES)))
    return [token for token in tokens if token not in DROPPED]


def _written(token: str) -> str:
    """A token as the tokenizer prints it."""
    if token[0] == "." and len(token) > 1 and not token[1].isdigit():
        return "..."
    if token[0] in "-–—" and not token[-1].isdigit():
        return "-" if token == "-" else "--"
    return _WRITTEN.get(token, token.lower())
