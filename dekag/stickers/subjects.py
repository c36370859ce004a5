"""The subjects: artwork, colour, synonyms and suitable settings."""

from __future__ import annotations

from dataclasses import dataclass

LAND = ("meadow", "beach", "snow", "desert", "forest", "city", "room", "moon")
GARDEN = ("meadow", "beach", "forest", "city", "room", "desert")


@dataclass(frozen=True)
class Subject:
    """A subject and its rendering.

    Attributes:
        name: the plain word for it.
        code: file name of its artwork, without suffix.
        colour: its own colour; "mixed" for several.
        settings: settings in which it can occur.
        synonyms: other words for it.
        paintable: whether it can have other colours.
        hue: the main hue in degrees of OKLCh, which another colour replaces; None: light grey parts are
            replaced.
        reach: largest distance from `hue`, in degrees, of parts that get the new colour.
        flies: whether it is in the air.
        swims: whether it can be under water.
        wears: whether it can wear an accessory on its head.
        cut: fraction of its height that is under water when afloat.
    """

    name: str
    code: str
    colour: str
    settings: tuple[str, ...]
    synonyms: tuple[str, ...] = ()
    paintable: bool = False
    hue: float | None = None
    reach: float = 48.0
    flies: bool = False
    swims: bool = False
    wears: bool = False
    cut: float = 0.0


_ALL = (
    # animals
    Subject("cat", "1f431", "orange", LAND, ("kitten", "kitty"), True, 75, wears=True),
    Subject("dog", "1f436", "brown", LAND, ("puppy", "hound"), wears=True),
    Subject("fox", "1f98a", "orange", LAND, wears=True),
    Subject("bear", "1f43b", "brown", LAND, ("brown bear",), wears=True),
    Subject("panda", "1f43c", "mixed", LAND, ("panda bear",), wears=True),
    Subject("lion", "1f981", "mixed", LAND, wears=True),
    Subject("pig", "1f437", "pink", LAND, ("piglet",), wears=True),
    Subject("rabbit", "1f430", "white", LAND, ("bunny", "hare"), True, wears=True),
    Subject("frog", "1f438", "green", (*GARDEN, "snow"), ("toad",), True, 155, 55, wears=True),
    Subject("penguin", "1f427", "mixed", ("snow", "beach", "city", "room", "moon"), wears=True),
    Subject("owl", "1f989", "brown", ("forest", "meadow", "snow", "city", "desert"), wears=True),
    Subject("duck", "1f986", "mixed", ("sea", "meadow", "beach", "forest", "city"), ("mallard",), cut=0.10),
    Subject("elephant", "1f418", "grey", LAND, (), True),
    Subject("turtle", "1f422", "green", ("underwater", *GARDEN), ("tortoise",), True, 165, 80, swims=True),
    Subject("butterfly", "1f98b", "orange", GARDEN, (), True, 35, flies=True),
    Subject("crab", "1f980", "red", ("beach", "underwater", "desert", "room"), (), True, 5),
    Subject(
        "octopus", "1f419", "orange", ("underwater", "beach", "room", "moon"), (), True, 20, 75, swims=True
    ),
    Subject("fish", "1f41f", "blue", ("underwater", "sea", "beach", "room"), (), True, 245, swims=True),
    Subject("whale", "1f433", "blue", ("sea", "underwater", "beach", "snow"), (), swims=True, cut=0.12),
    Subject("dinosaur", "1f995", "green", LAND, ("dino", "brontosaurus"), True, 175, 75),
    # food
    Subject("apple", "1f34e", "red", GARDEN, (), True, 20),
    Subject("strawberry", "1f353", "red", GARDEN),
    Subject("watermelon", "1f349", "mixed", GARDEN, ("slice of watermelon",)),
    Subject("donut", "1f369", "brown", GARDEN, ("doughnut",)),
    Subject("pumpkin", "1f383", "orange", (*GARDEN, "snow"), ("jack-o'-lantern",), wears=True),
    # vehicles
    Subject(
        "car",
        "1f697",
        "red",
        ("city", "meadow", "beach", "snow", "desert", "forest", "moon"),
        ("automobile",),
        True,
        20,
    ),
    Subject(
        "bus",
        "1f68c",
        "yellow",
        ("city", "meadow", "beach", "snow", "desert", "forest"),
        ("coach",),
        True,
        62,
    ),
    Subject(
        "sailboat",
        "26f5",
        "yellow",
        ("sea", "beach", "city", "snow"),
        ("sailing boat",),
        True,
        70,
        60,
        cut=0.235,
    ),
    Subject(
        "rocket",
        "1f680",
        "red",
        ("moon", "city", "desert", "meadow", "snow", "beach"),
        ("spaceship",),
        True,
        5,
        flies=True,
    ),
    Subject(
        "ufo",
        "1f6f8",
        "mixed",
        ("moon", "city", "desert", "meadow", "forest", "snow"),
        ("flying saucer",),
        flies=True,
    ),
    # plants
    Subject("tree", "1f333", "green", ("meadow", "city", "snow", "desert", "beach", "forest"), ()),
    Subject("cactus", "1f335", "green", ("desert", "room", "beach", "city", "meadow"), (), True, 145),
    Subject("sunflower", "1f33b", "yellow", GARDEN),
    Subject("tulip", "1f337", "pink", GARDEN, (), True, 350),
    Subject("mushroom", "1f344", "red", (*GARDEN, "snow"), ("toadstool",), True, 20),
    # buildings
    Subject(
        "house",
        "1f3e0",
        "mixed",
        ("meadow", "beach", "snow", "desert", "forest", "moon"),
        ("home", "cottage"),
    ),
    Subject("tent", "26fa", "green", ("meadow", "beach", "snow", "desert", "forest", "moon"), (), True, 140),
    # objects
    Subject("balloon", "1f388", "red", (*LAND, "sea"), (), True, 15, flies=True),
    Subject("gift", "1f381", "yellow", (*GARDEN, "snow", "moon"), ("present",), True, 70, 52),
    Subject("robot", "1f916", "grey", LAND, ("android",), True, wears=True),
    Subject("umbrella", "2602-fe0f", "purple", (*GARDEN, "snow"), (), True, 300),
    Subject("snowman", "26c4", "white", ("snow", "forest", "city", "meadow")),
    Subject("snail", "1f40c", "brown", GARDEN),
    Subject("flamingo", "1f9a9", "pink", ("beach", "meadow", "sea", "city", "forest")),
)

# Accessories: artwork, and width relative to the width of the subject.
ACCESSORIES: dict[str, tuple[str, float]] = {"crown": ("1f451", 0.46), "top-hat": ("1f3a9", 0.52)}

SUBJECT_BY_NAME: dict[str, Subject] = {subject.name: subject for subject in _ALL}
