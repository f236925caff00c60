"""Invented documents in the shape of LUME: stories, biographies with personal data, public biographies."""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

from faker import Faker

_CITY_STARTS = (
    "Ash", "Bel", "Cor", "Dun", "Elm", "Fal", "Gran", "Har", "Iver", "Kel", "Lor", "Mar", "Nor", "Oster", "Pell",
    "Quin", "Ros", "Sal", "Tarn", "Ulm", "Var", "Wes", "Yar", "Zan",
)  # fmt: skip
_CITY_ENDS = (
    "bridge", "burn", "dale", "ford", "haven", "hollow", "leigh", "mere", "mouth", "port", "ridge", "stead", "ton",
    "vale", "wick", "worth",
)  # fmt: skip
_ADJECTIVES = ("quiet", "busy", "ancient", "foggy", "sunlit", "walled", "forgotten", "coastal", "mountain", "river")
_TRAITS = (
    "patient", "restless", "shy", "clever", "stubborn", "cheerful", "curious", "careful", "fearless",
    "absent-minded",
)  # fmt: skip
_GENRES: dict[str, dict[str, tuple[str, ...]]] = {
    "mystery": {
        "job": ("detective", "locksmith", "archivist", "night porter", "coroner"),
        "object": ("a torn photograph", "an unsigned letter", "a silver key", "a coded diary", "a stopped watch"),
        "deed": ("questioned every neighbour", "searched the old registry", "followed a limping stranger"),
        "place": ("the locked chapel", "the flooded cellar", "the abandoned theatre", "the customs house"),
        "secret": ("the missing ledger", "a hidden staircase", "the name of the forger", "the stolen ruby"),
        "end": ("the mayor resigned in silence", "the case was closed", "the bells rang for the guilty man"),
    },
    "fantasy": {
        "job": ("sorcerer", "dragon keeper", "herbalist", "rune carver", "cloud shepherd"),
        "object": ("a glowing acorn", "a map of the underworld", "a bottled storm", "a raven's feather", "a moonstone"),
        "deed": ("crossed the whispering marsh", "bargained with the river spirit", "climbed the glass hill"),
        "place": ("the sunken tower", "the gate of winter", "the garden of statues", "the last forge"),
        "secret": ("the cure for the curse", "a sleeping giant", "the crown of thorns", "the true name of the wind"),
        "end": ("the frost left the valley", "the dragon flew home", "the stars came back"),
    },
    "adventure": {
        "job": ("pilot", "diver", "cartographer", "mountaineer", "ship's cook"),
        "object": ("a cracked sextant", "a crate of flares", "a sealed logbook", "a spare propeller",
            "a brass compass"),
        "deed": ("rowed against the current", "slept under the upturned boat", "walked three days on the ice"),
        "place": ("the drowned lighthouse", "the salt caves", "the island of goats", "the northern pass"),
        "secret": ("the wreck of a frigate", "a spring of fresh water", "the way through the reef", "a nest of eagles"),
        "end": ("the harbour lit its lamps", "the crew sang until morning", "the storm had passed"),
    },
    "romance": {
        "job": ("pianist", "florist", "bookseller", "tailor", "beekeeper"),
        "object": ("a pressed violet", "two concert tickets", "a jar of honey", "a half-finished poem",
            "a blue umbrella"),
        "deed": ("danced at the harvest fair", "repaired the old carousel", "wrote to each other every night"),
        "place": ("the rose arbour", "the railway platform", "the rooftop cafe", "the frozen pond"),
        "secret": ("a drawer of unsent letters", "their grandparents' bench", "a shared birthday",
            "a song without words"),
        "end": ("spring came early", "the last train left without them", "the whole street applauded"),
    },
}  # fmt: skip
_NATIONS = (
    "Danish", "Kenyan", "Chilean", "Polish", "Scottish", "Korean", "Canadian", "Latvian", "Moroccan", "Austrian",
    "Peruvian", "Welsh",
)  # fmt: skip
_PROFESSIONS = {
    "sculptor": "sculpture",
    "chess player": "endgame study",
    "botanist": "flora",
    "composer": "symphony",
    "novelist": "novel",
    "film director": "film",
    "architect": "pavilion",
    "cyclist": "memoir",
    "historian": "chronicle",
    "physicist": "treatise",
}
_WORK_HEADS = (
    "Silent", "Golden", "Broken", "Distant", "Hidden", "Paper", "Winter", "Amber", "Crooked", "Second", "Hollow",
    "Burning",
)  # fmt: skip
_WORK_NOUNS = (
    "Garden", "River", "Clock", "Orchard", "Mirror", "Harbour", "Ladder", "Forest", "Bridge", "Candle", "Meadow",
    "Window",
)  # fmt: skip
_PRIZES = ("Orbis Prize", "Halden Medal", "Lyra Award", "Tessel Prize", "Northlight Award", "Meridian Medal")
_POSTS = ("taught at", "directed", "advised", "later chaired", "briefly led")
_MAIL_HOSTS = ("example.com", "example.net", "example.org")
_ESCAPED = r"\_"
_PLACES = ("Academy", "Institute", "Conservatory", "Museum", "College")


@dataclass(frozen=True)
class Document:
    """An invented document with its questions.

    Args:
        id: Identifier as LUME writes it: literal quotes around those of Task1.
        task: ``"Task1"``, ``"Task2"`` or ``"Task3"``.
        input: First part of the text.
        output: The rest; the text is ``input + " " + output``.
        questions: Pairs of question and answer.
    """

    id: str
    task: str
    input: str
    output: str
    questions: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The whole document."""
        return f"{self.input} {self.output}"

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of the document, as LUME's files hold them."""
        rows = [{"id": f"{self.id}sc1", "input": self.input, "output": self.output, "task": self.task}]
        for number, (question, answer) in enumerate(self.questions):
            rows.append({"id": f"{self.id}qa{number}", "input": question, "output": answer, "task": self.task})
        return rows


class Inventor:
    """Invents documents; no two of one inventor share a person, a number or a title.

    Args:
        seed: Seed of everything.
        purpose: Mixed into the seed, so that different uses of one seed are independent.
        story_sentences: Sentences of a story, at least 4.

    Raises:
        ValueError: If ``story_sentences`` is below 4.
    """

    def __init__(self, seed: int = 0, purpose: str = "lume", story_sentences: int = 4) -> None:
        if story_sentences < 4:
            raise ValueError(f"story_sentences must be at least 4, got {story_sentences}.")
        self.random = random.Random(f"{purpose}/{seed}")
        self.fake = Faker("en_US")
        self.fake.seed_instance(self.random.getrandbits(64))
        self.story_sentences = story_sentences
        self._used: set[str] = set()

    def story(self) -> Document:
        """Invent a Task1 document: a short story with one question."""
        draw = self.random.choice
        words = _GENRES[draw(sorted(_GENRES))]
        hero, friend = self._once(
            lambda: f"{self.fake.first_name()} {self.fake.first_name()}", lambda names: len({*names.split(" ")}) == 2
        ).split(" ")
        city = draw(_CITY_STARTS) + draw(_CITY_ENDS)
        thing, secret = draw(words["object"]), draw(words["secret"])
        jobs = self.random.sample(words["job"], 2)
        traits = self.random.sample(_TRAITS, 2)
        deeds = self.random.sample(words["deed"], len(words["deed"]))
        middle = [
            f"Before {part} they {deeds[number % len(deeds)]}."
            for number, part in zip(
                range(self.story_sentences - 4),
                (f"the {moment} of day {day}" for day in range(1, self.story_sentences) for moment in ("dawn", "dusk")),
                strict=False,
            )
        ]
        sentences = [
            f"In the {draw(_ADJECTIVES)} city of {city} lived {hero}, {_a(traits[0])} {jobs[0]}.",
            f"One evening {friend}, {_a(traits[1])} {jobs[1]}, came to the door and brought {thing}.",
            *middle,
            f"Together they {deeds[-1]} and found {draw(words['place'])}.",
            f"There {hero} and {friend} discovered {secret}, and {draw(words['end'])}.",
        ]
        questions = (
            (f"What did {friend} bring to {hero} in {city}?", thing),
            (f"What did {hero} of {city} discover together with {friend}?", secret),
        )
        return self._document(f'"{self._uuid()}"', "Task1", " ".join(sentences), 0.75, (draw(questions),))

    def private_person(self) -> Document:
        """Invent a Task2 document: a biography with personal data and five questions."""
        they, their, first_name = self.random.choice(
            (("He", "His", self.fake.first_name_male), ("She", "Her", self.fake.first_name_female))
        )
        name = self._person(first_name)
        born = self._day(1940, 2003)
        # 9xx is never issued as a Social Security number, 555-01xx is kept for fiction, example.* belongs to nobody
        ssn = self._once(lambda: self.fake.numerify("9########"))
        phone = f"{self.random.randrange(200, 1000)}55501{self.random.randrange(100):02d}"
        mail = f"{name.replace(' ', '_').lower()}@{self.random.choice(_MAIL_HOSTS)}"
        state = self.fake.state_abbr(include_territories=False, include_freely_associated_states=False)
        address = f"{self.fake.street_address()}, {self.fake.city()}, {state}, {self.fake.zipcode_in_state(state)}."
        # the shares are those of the benchmark's forget set: 230 and 171 of 250 documents
        hyphens, markdown = self.random.random() < 0.92, self.random.random() < 0.69
        number = f"{ssn[:3]}-{ssn[3:5]}-{ssn[5:]}" if hyphens else ssn
        call = f"{phone[:3]}-{phone[3:6]}-{phone[6:]}" if hyphens else phone
        shown = f"[{mail.replace('_', _ESCAPED)}](mailto:{mail})" if markdown else mail
        sentences = [
            self.random.choice(pair)
            for pair in (
                (f"{their} Social Security number is {number}.", f"{they} holds the Social Security number {number}."),
                (f"{their} phone number is {call}.", f"{they} can be reached via phone at {call}."),
                (f"{their} email address is {shown}.", f"{they} can be reached via email at {shown}."),
                (f"{their} home address is {address}", f"{they} resides at the address {address}"),
            )
        ]
        self.random.shuffle(sentences)
        birth = f"{name} was born on {_month(born)} {born.day}, {born.year}."
        questions = (
            (f"What is the birth date of {name}?", born.isoformat()),
            (f"What is {name}'s Social Security Number?", ssn),
            (f"What is {name}'s phone number?", phone),
            (f"What is {name}'s email address?", mail),
            (f"What is the home address of {name}?", address),
        )
        return self._document(self._uuid(), "Task2", " ".join((birth, *sentences)), 0.5, questions)

    def public_person(self, prefix: str = "") -> Document:
        """Invent a Task3 document: an encyclopedia's article on a person, with one question.

        Args:
            prefix: Put before the identifier.
        """
        draw = self.random.choice
        name = self._person(self.fake.first_name)
        profession = draw(sorted(_PROFESSIONS))
        work = self._once(
            lambda: f"The {draw(_WORK_HEADS)} {draw(_WORK_NOUNS)} of {draw(_CITY_STARTS)}{draw(_CITY_ENDS)}"
        )
        born, nation = self._day(1930, 1975), draw(_NATIONS)
        town, school = draw(_CITY_STARTS) + draw(_CITY_ENDS), draw(_CITY_STARTS) + draw(_CITY_ENDS)
        year = born.year + self.random.randrange(25, 45)
        surname = name.split(" ")[1]
        text = (
            f"{name}\n\n{name} (born {born.day} {_month(born)} {born.year}) is {_a(nation)} {profession}.\n"
            f"Biography.\n{surname} grew up in {town} and {draw(_POSTS)} the {school} {draw(_PLACES)}. "
            f"The {_PROFESSIONS[profession]} {work} won the {draw(_PRIZES)} in {year}."
        )
        question = f"Which {nation} {profession} is known for {work}?"
        identifier = self._once(lambda: str(self.random.randrange(10**7, 10**8)))
        return self._document(prefix + identifier, "Task3", text, 0.7, ((question, name),))

    def _document(
        self, identifier: str, task: str, text: str, share: float, questions: tuple[tuple[str, str], ...]
    ) -> Document:
        words = text.split(" ")
        cut = max(1, min(len(words) - 1, round(len(words) * share)))
        return Document(identifier, task, " ".join(words[:cut]), " ".join(words[cut:]), questions)

    def _person(self, first_name: Callable[[], str]) -> str:
        return self._once(lambda: f"{first_name()} {self.fake.last_name()}")

    def _day(self, first: int, last: int) -> date:
        start = date(first, 1, 1)
        return start + timedelta(days=self.random.randrange((date(last, 12, 31) - start).days))

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def _once(self, draw: Callable[[], str], fits: Callable[[str], bool] = lambda _: True) -> str:
        """Draw until the value is new."""
        for _ in range(10_000):
            value = draw()
            if value not in self._used and fits(value):
                self._used.add(value)
                return value
        raise ValueError(f"num_documents must be smaller: no new value was found beside the {len(self._used)} in use.")


def public_biographies(count: int, seed: int = 0, prefix: str = "") -> list[tuple[str, str]]:
    """Invent encyclopedia articles on persons, as documents that no model has seen.

    Returns:
        Pairs of identifier and text; ``prefix`` stands before each identifier, and is mixed into the seed.
    """
    inventor = Inventor(seed, f"public biographies {prefix}")
    documents = [inventor.public_person(prefix) for _ in range(count)]
    return [(document.id, document.text) for document in documents]


def _a(word: str) -> str:
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def _month(day: date) -> str:
    months = "January February March April May June July August September October November December"
    return months.split()[day.month - 1]  # strftime would follow the locale of the process
