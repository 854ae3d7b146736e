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

_THING = r"(?:[dDoOlL]'(?=[^\W_]))?[^\W_]+(?:[-_](?:[dDoOlL]'(?=[^\W_]))?[^\W_]+)*"
_CLITIC = r"(?:'(?:s|m|d|re|ve|ll)|n['`]t)(?!\w)"

# At each place the first pattern that matches takes the text. What follows a word in (?=…) is left for the next match.
_TOKEN = re.compile(
    "|".join(
        (
            r"https?://[^\s\"<>()]*[^\s\"<>().,;:!?]|www\.[^\s\"<>()]*[^\s\"<>().,;:!?]",  # addresses
            r"[\w.]+@[^\W_]+(?:\.[^\W_]+)*|[#@][A-Za-z]\w*",  # mail and names
            r"</?[A-Za-z][^<>]*>",  # tags
            r"(?i:\brock'n'roll|'n'|'(?:n|em|cause|till?|\d0s)\b)|\b(?i:ol'|somethin'|ev'ry|li'l|c'mon)(?!\w)",
            r"(?i:'t(?=(?:is|was)\b)|\by'(?=[a-z]))",  # 't is, y' all
            r"\b(?i:can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:gim|lem)(?=me\b))(?!\w+[-'])",
            rf"(?i:{_CLITIC})",
            rf"(?i:[^\W\d_]+?(?={_CLITIC}))",
            r"[^\W\d_]*[aeiouyAEIOUY]'[aeiou][^\W\d_]*",  # ma'am
            r"[A-Z]+(?:&[A-Z]+)+",  # R&B
            r"[A-Za-z](?:\.[A-Za-z])+\.(?:-[^\W_]+)*(?!\w)|(?<![\w.])[A-Za-z]\.(?=\s+[^A-Z\s])",  # u.s., plan b.
            r"\b(?i:nos?\.(?=\s*\d)|(?:ed|ph)\.d\.)",
            rf"\b(?:(?i:{'|'.join(_ABBREVIATIONS)})|{'|'.join(_CAPITAL_ABBREVIATIONS)})\.(?![A-Za-z])",
            r"[^\W\d_]+(?:\.[^\W\d_][^\W_]*)+",  # court.he
            r"(?:(?<![\w.])[-+])?\d*(?:[.,:]\d+)+|(?<![\w.])[-+]\d+(?![-\w])",  # 1,000 and 12:30
            rf"{_THING}(?:/{_THING})*",
            r"\.(?:\s?\.){2,}|…",
            r"[-–—]{2,}|[–—]",
            r"[!?]+|\*+|_+|''|``",
            r"\S",
        )
    )
)
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
