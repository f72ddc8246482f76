"""Multiple-choice questions: how they are asked, and which option a completion chooses.

The options are lettered from A. A completion may state the letter or the option's text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lepo_kernels.tasks.answers import normalized, stated_answer

LETTERS = "ABCDEFGHIJ"

# A letter that stands alone.
_ALONE = re.compile(r"(?<![A-Za-z0-9\\])([A-J])(?![A-Za-z0-9'])")
# In running text an "A" before a word in lower case is the article.
_ALONE_IN_TEXT = re.compile(_ALONE.pattern + r"(?!\s+[a-z])")
# What may stand around an answer: TeX's text commands, bold type.
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*|[{}*$`]")
_BRACKETS = re.compile(r"[()\[\]]")
_LETTER_FIRST = re.compile(r"[(\[]?\s?([A-Ja-j])\s?[.):\]]")
_NAMED = re.compile(r"(?:the\s)?(?:option|choice|answer)\s([A-Ja-j])\b", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:a|an|the)\s", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Args:
        texts: what they say, in the order of their letters.
        right: the place of the right one.
    """

    texts: tuple[str, ...]
    right: int

    def __post_init__(self) -> None:
        if not 2 <= len(self.texts) <= len(LETTERS):
            raise ValueError(f"expected 2 to {len(LETTERS)} options, got {len(self.texts)}")
        if not all(isinstance(text, str) for text in self.texts):
            raise ValueError(f"an option is no text: {list(self.texts)}")
        if not 0 <= self.right < len(self.texts):
            raise ValueError(f"option {self.right} is said to be right, of {len(self.texts)}")
        # A blank among the wrong ones is a published data set's own.
        if not self.texts[self.right].strip():
            raise ValueError(f"the right option is blank: {list(self.texts)}")

    @property
    def answer(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.right]


def as_question(question: str, texts: Sequence[str]) -> str:
    """The question with its options, one a line, and how to answer."""
    letters = LETTERS[: len(texts)]
    options = "\n".join(
        f"{letter}. {text.strip()}" for letter, text in zip(letters, texts, strict=True)
    )
    some, last = ", ".join(letters[:-1]), letters[-1]
    return f"{question.strip()}\n{options}\nAnswer with one letter: {some} or {last}."


def chosen_option(completion: str, texts: Sequence[str]) -> str | None:
    """The letter of the option that a completion chooses; None if it does not say.

    The answer that it states (see `stated_answer`) counts, by its letter or else by an option's
    text; an answer that names several letters chooses none. Where it states none, the last letter
    that stands alone counts.

    Args:
        completion: what the model wrote.
        texts: what the options say.
    """
    letters = LETTERS[: len(texts)]
    given = stated_answer(completion)
    if given is not None:
        return _option_of(given, texts, letters)
    alone = [letter for letter in _ALONE_IN_TEXT.findall(completion) if letter in letters]
    return alone[-1] if alone else None


def _option_of(given: str, texts: Sequence[str], letters: str) -> str | None:
    marked = " ".join(_MARKUP.sub(" ", given).split())
    bare = " ".join(_BRACKETS.sub(" ", marked).split()).strip(" .,;:")
    if not bare:
        return None
    if len(bare) == 1 and bare.upper() in letters:
        return bare.upper()
    options = [normalized(text) for text in texts]
    for answer in (given, bare):
        if options.count(normalized(answer)) == 1:
            return letters[options.index(normalized(answer))]
    first = _LETTER_FIRST.match(marked) or _NAMED.match(bare)
    if first is not None and first[1].upper() in letters:
        return first[1].upper()
    noun = normalized(_ARTICLE.sub("", bare, count=1)) if _ARTICLE.match(bare) else None
    if noun is not None and options.count(noun) == 1:
        return letters[options.index(noun)]
    alone = {letter for letter in _ALONE.findall(bare) if letter in letters}
    return alone.pop() if len(alone) == 1 else None
