"""Writes the example data: short messages to an online shop, each with the JSON ticket that it stands for.

It knows nothing of models or of the service. Run it again and the same two files come out, byte for byte.

The rules behind the labels, so that every ticket can be told from its message alone:

- intent is what the customer asks for (refund, exchange, cancel, delivery, address, invoice). "damage" reports a
  defect and asks for nothing else; "it arrived broken, I want my money back" is a refund.
- order is written A-1042 however the customer wrote it ("#a 1042", "A/1042"), and null when there is none.
- product is the item in lower case; every message names one.
- urgent is true exactly if the customer asks for haste or names a deadline within three days. Anger, or a third
  reminder, is not urgency.

Held-out rows use other products, names, streets and numbers throughout, and about half of their phrases occur in no
training row.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SYSTEM_PROMPT = "Extract the ticket as JSON."
SEED = 20261123
ROWS: dict["Split", int] = {"train": 1000, "heldout": 100}
MAX_WORDS = 20

Split = Literal["train", "heldout"]
Families = dict[str, Any]

FOLDER = Path(__file__).parent
_PRODUCT, _ORDER, _ARTICLE = (
    "\ue000",
    "\ue001",
    "\ue002",
)  # stand-ins, so that typos and capitals never touch what the label must copy
_TEXTING = {"you": "u", "your": "ur", "please": "pls", "thanks": "thx", "are": "r", "tomorrow": "tmrw", "because": "bc"}
_QUESTION_STARTS = (
    *("can ", "could ", "do you ", "have you ", "has ", "did ", "is ", "are ", "will ", "may i "),
    *("when will ", "when is ", "when does ", "where ", "how ", "any news", "any update", "any chance", "any of "),
    *("what's the status", "what do "),
)


@dataclass(frozen=True)
class Ticket:
    """What the assistant must answer; fields in the order in which they are written."""

    intent: str
    order: str | None
    product: str
    urgent: bool

    def to_json(self) -> str:
        """The label: compact JSON, keys in a fixed order."""
        return json.dumps(self.__dict__, separators=(",", ":"))


def main() -> None:
    """Writes both files into the folder given on the command line (default: beside this script)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    folder: Path = parser.parse_args().out
    for split, rows in make_rows().items():
        path = folder / f"support_tickets_{split}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} rows")


def make_rows() -> dict[Split, list[dict[str, Any]]]:
    """Both splits as chat rows. No message occurs twice, however it is punctuated."""
    families = json.loads((FOLDER / "support_ticket_phrases.json").read_text(encoding="utf-8"))
    rng = random.Random(SEED)
    seen: set[str] = set()
    return {split: _split_rows(_Writer(families, split, rng), count, seen) for split, count in ROWS.items()}


def _split_rows(writer: "_Writer", count: int, seen: set[str]) -> list[dict[str, Any]]:
    intents = list(writer.families["asks"])
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        message, ticket = writer.write(intents[len(rows) % len(intents)])
        words = re.findall(r"\w+", message.lower())
        if " ".join(words) in seen or len(message.split()) > MAX_WORDS:
            continue
        seen.add(" ".join(words))
        rows.append(_chat_row(message, ticket))
    writer.rng.shuffle(rows)
    return rows


def _chat_row(message: str, ticket: Ticket) -> dict[str, Any]:
    turns = (("system", SYSTEM_PROMPT), ("user", message), ("assistant", ticket.to_json()))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@dataclass(frozen=True)
class _Writer:
    """Writes one message at a time, drawing every part on its own."""

    families: Families
    split: Split
    rng: random.Random

    def write(self, intent: str) -> tuple[str, Ticket]:
        ticket = self._ticket(intent)
        register = self.rng.choice(("polite", "terse", "chatty", "angry", "hasty", "texting"))
        clauses = self._clauses(ticket)
        text = _in_register(clauses, register, self.rng)
        if register in ("polite", "chatty"):
            text = self._with_courtesies(text, always=register == "chatty")
        return self._filled(text, ticket, register), ticket

    def _ticket(self, intent: str) -> Ticket:
        rng = self.rng
        product = rng.choice(self.families["products"][self.split])
        order = None
        if rng.random() < 0.8:
            order = f"{rng.choice('ABCDEFGHKLMNPRSTVWXZ')}-{self._number(1000, 9999)}"
        return Ticket(intent, order, product, rng.random() < 0.45)

    def _clauses(self, ticket: Ticket) -> list[str]:
        """The parts of the message in a free order, slots filled except the product and the order."""
        rng = self.rng
        ask = self._pick(self.families["asks"][ticket.intent])
        clauses = [ask]
        if rng.random() < 0.2:
            clauses.append(self._pick(self.families["backgrounds"][ticket.intent]))
            rng.shuffle(clauses)
        if "{p}" not in ask:
            clauses.insert(0, self._pick(self.families["contexts"]))
        if ticket.order is not None:
            clauses.insert(rng.randint(0, len(clauses)), self._pick(self.families["order_clauses"]))
        if ticket.urgent:
            kind = "haste" if ticket.intent == "cancel" else rng.choice(("haste", "deadline"))
            clauses.insert(rng.randint(0, len(clauses)), self._pick(self.families[kind]))
        elif rng.random() < 0.4:
            clauses.insert(rng.randint(0, len(clauses)), self._pick(self.families["calm"]))
        return [self._slots(_choose_alternatives(clause, rng)) for clause in clauses]

    def _with_courtesies(self, text: str, always: bool) -> str:
        name = self.rng.choice(self.families["names"][self.split])
        if always or self.rng.random() < 0.5:
            text = f"{self._pick(self.families['greetings'])}{self.rng.choice((',', '!', ',', '.'))} {text}"
        if always or self.rng.random() < 0.5:
            text = f"{text} {self._pick(self.families['closings'])}"
        return text.replace("{name}", name)

    def _pick(self, family: dict[str, list[str]]) -> str:
        """A phrase of the family; a held-out row takes one that training never sees in about half of the draws."""
        unseen = self.split == "heldout" and self.rng.random() < 0.5
        return self.rng.choice(family["heldout" if unseen else "train"])

    def _slots(self, text: str) -> str:
        rng = self.rng
        draws: dict[str, Callable[[], str]] = {
            "{d}": lambda: rng.choice(("my", "my", "the", "the", "this")),
            "{m}": lambda: str(self._number(8, 250)),
            "{k}": lambda: str(self._number(2, 28)),
            "{h}": lambda: str(self._number(1, 180)),
            "{s}": lambda: rng.choice(self.families["streets"][self.split]),
        }
        for slot, draw in draws.items():
            if slot in text:
                text = text.replace(slot, draw())
        return text.replace("{p}", _PRODUCT).replace("{o}", _ORDER).replace("{a}", _ARTICLE)

    def _number(self, low: int, high: int) -> int:
        """A number that the other split never uses: multiples of seven are kept for the held-out rows."""
        while True:
            number = self.rng.randint(low, high)
            if (number % 7 == 0) == (self.split == "heldout"):
                return number

    def _filled(self, text: str, ticket: Ticket, register: str) -> str:
        if ticket.order is not None:
            letter, digits = ticket.order.split("-")
            form = self._pick(self.families["order_forms"])
            text = text.replace(_ORDER, form.format(L=letter, l=letter.lower(), n=digits))
        product = ticket.product
        text = text.replace(_ARTICLE, "an" if product[0] in "aeiou" else "a")
        if text[text.index(_PRODUCT) - 2].isupper():
            product = product.upper()
        elif register == "polite" and self.rng.random() < 0.1:
            product = product.title()
        return text.replace(_PRODUCT, product)


def _choose_alternatives(phrase: str, rng: random.Random) -> str:
    return re.sub(r"\[([^\]]*)\]", lambda found: rng.choice(found.group(1).split("|")), phrase)


def _in_register(clauses: list[str], register: str, rng: random.Random) -> str:
    """Joins the clauses as such a writer would."""
    if register == "terse":
        return rng.choice((", ", ". ", " - ")).join(clauses).lower()
    if register == "angry":
        loud = rng.randrange(len(clauses) * 2)
        voiced = [clause.upper() if i == loud else clause for i, clause in enumerate(clauses)]
        return " ".join(_sentence(clause, rng.choice(("!", "!!", "."))) for clause in voiced)
    if register == "hasty":
        return _with_typo(rng.choice((" ", ", ")).join(clauses).lower(), rng)
    if register == "texting":
        words = rng.choice((" ", ". ", ", ")).join(clauses).lower().split(" ")
        return " ".join(_TEXTING.get(word, word) for word in words)
    return " ".join(_sentence(clause, ".") for clause in clauses)


def _sentence(clause: str, mark: str) -> str:
    asks = clause.lower().startswith(_QUESTION_STARTS)
    return clause[0].upper() + clause[1:] + ("?" if asks else mark)


def _with_typo(text: str, rng: random.Random) -> str:
    """Swaps two letters, drops one or doubles one in a longer word."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha() and word.isascii()]
    for i in rng.sample(places, min(len(places), 1)):
        word, at = words[i], rng.randint(1, len(words[i]) - 2)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        words[i] = rng.choice((swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]))
    return " ".join(words)


if __name__ == "__main__":
    main()
