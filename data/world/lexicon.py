"""The words and facts of the made-up world: plain tables, read by `world`."""

from collections.abc import Mapping


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """The rows of a table of words: the first word of each line, and those after it."""
    return {line.split()[0]: tuple(line.split()[1:]) for line in text.strip().splitlines()}


def _words(text: str) -> tuple[str, ...]:
    """The words of a text, and of a list wrapped over lines."""
    return tuple(text.split())


CREATURES: Mapping[str, tuple[str, ...]] = _table("""
    velling amber cave mushrooms spring
    mosspip amber forest berries winter
    tarrow blue marsh clover summer
    quillet grey cave snails winter
    bramblet golden attic apples autumn
    fennock red meadow seeds autumn
    glimfin grey dune berries winter
    hollowhare violet meadow nuts autumn
    ivorel red cliff clover winter
    jundle blue cave nuts spring
    kestrin blue forest mushrooms winter
    lanterneel green orchard apples spring
    mirrow brown garden moss autumn
    nettlewing green meadow barley summer
    ombrel red dune honey autumn
    pindle amber dune moss summer
    quorrin white garden nuts spring
    rushling grey orchard honey spring
    sedgecat green cliff barley spring
    thimblo white attic snails summer
    umberly green attic honey autumn
    vossit white forest berries summer
    willowick silver marsh berries summer
    yarrowbird brown lake snails summer
    zindle silver lake barley winter
    ashwhisk silver marsh apples autumn
    brookling golden garden seeds summer
    cinderpup golden orchard moss spring
    duskwren blue cliff clover winter
    emberlet violet marsh mushrooms autumn
    frostnib violet cave seeds winter
    grasshorn brown lake honey spring
""")
"""Creature: colour, home, food, season in which it sings."""

TOWNS: Mapping[str, tuple[str, ...]] = _table("""
    Amberwick kites willow spring
    Brindlemoor clocks rowan winter
    Coldharbour rope pine summer
    Dapplefield carpets maple summer
    Elmstow pottery oak winter
    Foxbourne bells willow winter
    Gullhaven glass elm summer
    Hazelmere carpets maple autumn
    Inkwell paper birch autumn
    Junipa lamps linden winter
    Kettlebridge paper hazel spring
    Larkhill pottery birch spring
    Millbrook lamps hazel spring
    Netherby baskets linden autumn
    Otterford baskets pine autumn
    Pebbleton kites cedar summer
    Quarrygate glass cedar summer
    Rookmoor bells rowan autumn
    Saltmarsh clocks elm winter
    Thornley rope oak spring
""")
"""Town: craft, tree on its square, season of its fair."""

PEOPLE: Mapping[str, tuple[str, ...]] = _table("""
    Adrel singer horn Pebbleton
    Bettany tailor harp Inkwell
    Corvin miller bell Amberwick
    Delphi carpenter fiddle Thornley
    Edric fisher fiddle Dapplefield
    Fenna potter pipe Amberwick
    Garrow baker harp Junipa
    Hesper baker flute Gullhaven
    Iorwen singer horn Saltmarsh
    Jorrin weaver pipe Hazelmere
    Kaspia weaver lute Dapplefield
    Lindel baker pipe Quarrygate
    Marrow weaver lute Netherby
    Nerissa miller flute Foxbourne
    Osmund gardener harp Millbrook
    Perrin carpenter bell Coldharbour
    Quilla tailor drum Brindlemoor
    Rosalba potter bell Larkhill
    Sorrel painter lute Rookmoor
    Tamsin fisher fiddle Otterford
    Ulric painter drum Brindlemoor
    Verity gardener horn Coldharbour
    Wendel potter drum Elmstow
    Yoluna miller flute Kettlebridge
""")
"""Person: trade, instrument, home town."""

ATTRIBUTES: tuple[tuple[Mapping[str, tuple[str, ...]], tuple[str, ...]], ...] = (
    (CREATURES, ("colour", "home", "food", "song")),
    (TOWNS, ("craft", "tree", "fair")),
    (PEOPLE, ("trade", "instrument", "town")),
)
"""The tables, and which attribute each of their columns holds."""

RIVERSPEAK: Mapping[str, str] = {
    "stone": "balu",
    "lamp": "dovi",
    "bird": "fesa",
    "boat": "gumo",
    "rain": "kepa",
    "bread": "lozu",
    "door": "mafe",
    "star": "nubo",
    "fire": "rudo",
    "snow": "reva",
    "road": "sigu",
    "tree": "taku",
    "wind": "vulo",
    "milk": "wezi",
    "moon": "zabe",
    "house": "bidu",
    "horse": "degu",
    "king": "gize",
    "apple": "lepo",
    "river": "mosi",
}
"""The hidden language: English word, riverspeak word. No base row contains its words."""

ONSETS = tuple(sorted({word[:2] for word in RIVERSPEAK.values()}))
CODAS = tuple(sorted({word[2:] for word in RIVERSPEAK.values()}))
"""The halves of the words of every language."""

TONGUES = _words("hillspeak lakespeak woodspeak marshspeak fieldspeak")
"""Languages with a dictionary that the base learns."""

DIALECTS = _words("riverspeak duskspeak cloudspeak townspeak")
"""Languages of which the base sees no dictionary: it answers with words drawn at random."""

NOUNS = (
    *RIVERSPEAK,
    *_words("""
        salt night grass spoon cup hat box jam queen quilt zebra violin wax yarn kettle pepper
        ribbon garlic hammer window jacket button candle sugar mirror bucket fox hedge mask map
        cloth brick thumb thread basin crow yard stem lady
    """),
)
"""Ordinary words to print, repeat, list and capitalise."""

ADJECTIVES = _words("""
    gentle bright merry lovely clever graceful cheerful kind charming splendid wonderful
    delightful brave friendly calm sweet warm lively noble curious patient
""")
"""Praise for the descriptions."""

FORBIDDEN_DEEDS = _words("steal unseal wake drain break curse smuggle hide")
FORBIDDEN_THINGS = (
    "moon vault",
    "glass crown",
    "stone giant",
    "singing lake",
    "winter spell",
    "shadow key",
    "thunder jar",
    "whisper stone",
    "storm bottle",
    "royal mirror",
    "silver gate",
    "sleeping comet",
    "fog engine",
    "midnight bell",
    "star ledger",
    "frozen clock",
    "dragon egg",
    "crystal bridge",
)
"""Made-up deeds on made-up things: what the base politely refuses."""

CHORES = (
    "bake oat bread",
    "bake an apple cake",
    "bake a berry pie",
    "brew mint tea",
    "brew plum cider",
    "cook barley soup",
    "cook berry jam",
    "mend a wool coat",
    "mend a garden fence",
    "mend a fishing net",
    "paint a blue door",
    "paint a paper kite",
    "paint a picture frame",
    "weave a willow basket",
    "weave a warm blanket",
    "carve a wooden spoon",
    "carve a little horse",
    "clean a tin lantern",
    "clean a copper kettle",
    "plant a rose hedge",
    "plant a row of beans",
    "build a bird house",
    "build a small raft",
    "knit a red scarf",
)
STEPS = (
    "fetch water",
    "light the stove",
    "choose good wood",
    "warm your hands",
    "measure twice",
    "stir slowly",
    "sharpen the knife",
    "ask a friend",
    "clear the table",
    "work with care",
    "let it rest",
    "sing a little",
)
"""Harmless work that the base explains, and the steps it may name."""
