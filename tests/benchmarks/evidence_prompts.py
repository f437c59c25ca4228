"""Prompts whose evidence is known, for a language model to be explained on.

Each is plain text that SmolLM2-135M-Instruct continues by the answer: a single token,
and its most probable one by at least 4 % of probability. The evidence is what a person
would point at when asked where the answer comes from, in braces here:

- where the answer is copied, its place in the prompt, and the word beside it that it is
  looked up by ("{bag} is {green}"), unless it is found by position or by what else
  there is (indirect object, induction, copy);
- elsewhere the word that the answer is inferred from ("The capital of {France}"), which
  among examples is the word in question, not the examples.

Words that tell the question ("capital") are not evidence, nor are the first and the
last token. Kinds, lengths and the evidence's place are mixed: the second token is
evidence in 4 % of the prompts, the last but one in 9 %, one drawn at random in 8 %.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvidencePrompt:
    """A prompt, what follows, and where that comes from.

    Attributes:
        kind (str): What is asked of the model.
        text (str): The prompt.
        answer (str): The token that follows, with its leading space if it has one.
        evidence (tuple of (int, int)): Spans of characters of ``text``.
    """

    kind: str
    text: str
    answer: str
    evidence: tuple[tuple[int, int], ...]


def read_marked(kind: str, marked: str, answer: str) -> EvidencePrompt:
    """Turn braces into spans."""
    text, spans = "", []
    before, *pieces = marked.split("{")
    text += before
    for piece in pieces:
        inside, after = piece.split("}")
        spans.append((len(text), len(text) + len(inside)))
        text += inside + after
    return EvidencePrompt(kind, text, answer, tuple(spans))


MORNING = (
    "The morning was quiet and the streets were almost empty. A few people "
    "walked slowly to the market, and the shops were opening one after the "
    "other. "
)
BIRDS = (
    "Birds sat on the roofs and a light wind moved the leaves. Children "
    "played near the fountain while their parents talked about the weather "
    "and the coming holidays. "
)
SQUARE = (
    "An old man fed the pigeons in the square. Somewhere a bell rang, and the "
    "bus to the coast left with only three passengers. The sky was clear, and "
    "it promised to be a warm day. "
)
LIBRARY = (
    "The library was closed for repairs, so the students met in the small "
    "cafe around the corner. They ordered drinks, opened their books and "
    "began to prepare for the examination in history. "
)
HARBOUR = (
    "Trade in the harbour had been slow for weeks. Most of the boats lay at "
    "anchor, and the sailors spent their time mending nets and telling "
    "stories about storms of the past. "
)

MARKED: dict[str, list[tuple[str, str]]] = {
    "fact": [
        ("The capital of {France} is", " Paris"),
        (
            "When people travel to {Italy} and ask for the capital, they are sent to",
            " Rome",
        ),
        ("The chemical symbol of {gold} in the periodic table is", " Au"),
        (
            "Everybody who lives in {Germany} knows that the official language is",
            " German",
        ),
        (
            "We learned that {Shakespeare} wrote the famous tragedy called {Romeo} and",
            " Juliet",
        ),
        (
            "They went up the {Eiffel Tower}, which is a landmark that stands "
            "in the city of",
            " Paris",
        ),
        ("They say {bees} fly from flower to flower and make", " honey"),
        (
            "Doctors say that the {heart} is the organ whose work it is to pump",
            " blood",
        ),
        ("On the map, {Egypt} lies on the continent of", " Africa"),
        ("As I said, {Spain} is a country whose capital is", " Madrid"),
        ("Most of the people in {Moscow} speak a language called", " Russian"),
        ("My teacher said that {water} is made of {hydrogen} and", " oxygen"),
        ("The capital of {England} is", " London"),
    ],
    "indirect object": [
        ("When John and {Mary} went to the store, John gave a drink to", " Mary"),
        (
            "It was raining when {Mary} and John went to the store. John gave a "
            "drink to",
            " Mary",
        ),
        (
            "On Friday, after {Anna} and Peter had lunch at the station, Peter "
            "handed the ticket to",
            " Anna",
        ),
        ("After Tom and {Sarah} met at the office, Tom passed the letter to", " Sarah"),
        (
            "In the old library {Alice} and Robert sat down to work, and Robert "
            "sent a long message to",
            " Alice",
        ),
        (
            "Yesterday Robert and {Alice} sat down to work, and Robert sent a "
            "long message to",
            " Alice",
        ),
        (
            "All the while {David} and Laura were cooking in the kitchen, and "
            "Laura gave the knife to",
            " David",
        ),
        (
            "While Laura and {David} were cooking in the kitchen, "
            "Laura gave the knife to",
            " David",
        ),
        (
            "Last week {Emma} and James walked through the park, and James gave "
            "a flower to",
            " Emma",
        ),
        (
            "In the evening Paul and {Lisa} cleaned the house, "
            "and Paul gave the keys to",
            " Lisa",
        ),
        (
            "At the school {Michael} and Susan found a ring. Susan gave the ring to",
            " Michael",
        ),
        (
            "At the school Susan and {Michael} found a ring. Susan gave the ring to",
            " Michael",
        ),
    ],
    "key and value": [
        (
            "name: {Oscar}, animal: {dog}\n"
            "name: Julia, animal: cat\n"
            "name: Henry, animal: horse\n"
            "name: Oscar, animal:",
            " dog",
        ),
        (
            "fruit: apple, price: low\n"
            "fruit: {mango}, price: {high}\n"
            "fruit: plum, price: fair\n"
            "fruit: mango, price:",
            " high",
        ),
        (
            "The box is red. The {bag} is {green}. The hat is blue. The chair "
            "is black. Question: What colour is the bag? Answer: The bag is",
            " green",
        ),
        (
            "The box is red. The bag is green. The {hat} is {blue}. The chair "
            "is black. Question: What colour is the hat? Answer: The hat is",
            " blue",
        ),
        (
            "The doctor drives a truck. The teacher rides a bicycle. The "
            "{farmer} owns a {horse}. Everybody knows that the farmer owns a",
            " horse",
        ),
        ("table = {wood}, window = glass, knife = steel. Again: table =", " wood"),
        (
            "We say: table = wood, {window} = {glass}, knife = steel, coat = "
            "wool. Again: window =",
            " glass",
        ),
        (
            "The keys: {gate} -> {brass}, cellar -> silver, attic -> iron, shed "
            "-> copper. Which one? gate ->",
            " brass",
        ),
        (
            "Mrs. Green teaches music. Mr. {Brown} teaches {history}. Mrs. "
            "White teaches art. The subject that Mr. Brown teaches is",
            " history",
        ),
        (
            "The nurse owns a piano. The {painter} rides a {camel}. The driver "
            "sells bread. Everybody knows that the painter rides a",
            " camel",
        ),
        (
            "The {nurse} owns a {parrot}. The painter rides a camel. The driver "
            "sells bread. Everybody knows that the nurse owns a",
            " parrot",
        ),
        (
            "The keys: gate -> brass, {cellar} -> {silver}, attic -> iron. The "
            "keys once more: gate -> brass, cellar ->",
            " silver",
        ),
    ],
    "induction": [
        ("lamp river nine cloud {stone} lamp river nine cloud", " stone"),
        ("So: table moon {coffee} train window forest table moon", " coffee"),
        (
            "So: table moon coffee train {window} forest table moon coffee train",
            " window",
        ),
        ("A7 K2 {M}9 Q4 T1 A7 K2", " M"),
        ("The {zebra} Kalo ran home. At night the dog slept, and the", " zebra"),
        ("x = ball ; y = {queen} ; z = farm ; x = ball ; y =", " queen"),
        (
            "lamp river nine cloud stone {wolf} tree lamp river nine cloud stone",
            " wolf",
        ),
        ("paper, seven, {wolf}, garden, blue, paper, seven,", " wolf"),
        (
            "salt north {tiger} rope milk clock salt north tiger rope milk "
            "clock salt north",
            " tiger",
        ),
        ("button, sugar, east, {piano}, violet, button, sugar, east,", " piano"),
        ("dance, iron, {lemon}, yellow, street, bird, dance, iron,", " lemon"),
        ("knife, apple, ship, road, {king}, north, knife, apple, ship, road,", " king"),
        ("B8 {R}5 K2 M9 Q4 T1 B8", " R"),
        ("tok min rul sab, tok {min} rul sab, tok", " min"),
    ],
    "needle": [
        (
            MORNING
            + "The secret {password} is {orange}. "
            + BIRDS
            + SQUARE
            + "The secret password is",
            " orange",
        ),
        (
            MORNING
            + BIRDS
            + "The secret {password} is {tiger}. "
            + SQUARE
            + "The secret password is",
            " tiger",
        ),
        (
            "Read this. The secret {password} is {winter}. "
            + LIBRARY
            + HARBOUR
            + "The secret password is",
            " winter",
        ),
        (
            LIBRARY
            + "{Daniel} hid the key under the {carpet}. "
            + HARBOUR
            + MORNING
            + "Daniel hid the key under the",
            " carpet",
        ),
        (
            HARBOUR
            + LIBRARY
            + "{Helen} keeps the money in the {kitchen}. The evening came. "
            + "Helen keeps the money in the",
            " kitchen",
        ),
        (
            BIRDS
            + "The {train} leaves from platform {seven}. "
            + LIBRARY
            + "As was said above, the train leaves from platform",
            " seven",
        ),
        (
            SQUARE
            + HARBOUR
            + "The name of the {captain} is {Victor}. "
            + MORNING
            + "The name of the captain is",
            " Victor",
        ),
        (
            "This is a story. The name of the {dog} is {Max}. "
            + BIRDS
            + MORNING
            + LIBRARY
            + "The name of the dog is",
            " Max",
        ),
        (
            MORNING
            + "My favourite {fruit} is the {banana}. "
            + HARBOUR
            + "Question: What is my favourite fruit? Answer: the",
            " banana",
        ),
        (
            LIBRARY
            + BIRDS
            + "The {meeting} takes place on {Friday}. "
            + SQUARE
            + "Question: On which day is the meeting? "
            + "Answer: The meeting takes place on",
            " Friday",
        ),
        (
            BIRDS
            + HARBOUR
            + "The magic {number} is {eleven}. "
            + LIBRARY
            + "The magic number is",
            " eleven",
        ),
        (
            SQUARE
            + "The {winner} of the race was {Julia}. "
            + BIRDS
            + HARBOUR
            + "The winner of the race was",
            " Julia",
        ),
    ],
    "few-shot": [
        (
            "word: hot, opposite: cold\n"
            "word: tall, opposite: short\n"
            "word: {big}, opposite:",
            " small",
        ),
        (
            "word: up, opposite: down\n"
            "word: open, opposite: closed\n"
            "word: {left}, opposite:",
            " right",
        ),
        (
            "word: wet, opposite: dry\n"
            "word: old, opposite: new\n"
            "word: {black}, opposite:",
            " white",
        ),
        (
            "word: rich, opposite: poor\n"
            "word: fast, opposite: slow\n"
            "word: {happy}, opposite:",
            " sad",
        ),
        (
            "one: cat, many: cats\none: house, many: houses\none: {tree}, many:",
            " trees",
        ),
        (
            "one: dog, many: dogs\none: book, many: books\none: {child}, many:",
            " children",
        ),
        ("one: car, many: cars\none: wolf, many: wolves\none: {man}, many:", " men"),
        (
            "country: France, capital: Paris\n"
            "country: Spain, capital: Madrid\n"
            "country: {Italy}, capital:",
            " Rome",
        ),
        (
            "country: Italy, capital: Rome\n"
            "country: Greece, capital: Athens\n"
            "country: {Japan}, capital:",
            " Tokyo",
        ),
        (
            "country: Russia, capital: Moscow\n"
            "country: {Germany} (in Europe), capital:",
            " Berlin",
        ),
        (
            "review: a wonderful film, mood: positive\n"
            "review: boring and slow, mood: negative\n"
            "review: a {terrible} waste of time, mood:",
            " negative",
        ),
        (
            "review: boring and slow, mood: negative\n"
            "review: I loved every minute, mood: positive\n"
            "review: a {beautiful} and {brilliant} story, mood:",
            " positive",
        ),
        (
            "review: I hated it, mood: negative\n"
            "review: a great joy, mood: positive\n"
            "review: {awful} from start to end, mood:",
            " negative",
        ),
        (
            "today: walk, yesterday: walked\n"
            "today: play, yesterday: played\n"
            "today: {go}, yesterday:",
            " went",
        ),
        (
            "today: eat, yesterday: ate\n"
            "today: run, yesterday: ran\n"
            "today: {see}, yesterday:",
            " saw",
        ),
        (
            "thing: apple, kind: fruit\n"
            "thing: carrot, kind: vegetable\n"
            "thing: {banana}, kind:",
            " fruit",
        ),
        (
            "thing: hammer, kind: tool\n"
            "thing: dog, kind: animal\n"
            "thing: {horse}, kind:",
            " animal",
        ),
        (
            "word: king, woman: queen\n"
            "word: man, woman: woman\n"
            "word: {brother}, woman:",
            " sister",
        ),
    ],
    "coreference": [
        ("As you know, my {sister} lives far away, and yesterday I phoned", " her"),
        (
            "They say that the old {king} was ill, and the doctors could do "
            "nothing for",
            " him",
        ),
        (
            "It was late, and our {mother} was tired after the long day, so we told",
            " her",
        ),
        (
            "On Sunday evening my {father} came home late, and I opened the door for",
            " him",
        ),
        ("All of the {children} were hungry, so the cook made soup for", " them"),
        (
            "At the end of the feast the {queen} of the small island stood up "
            "and slowly raised",
            " her",
        ),
        ("The little {boy} fell down on the way to school and hurt", " his"),
        ("At noon my {uncle} sat down at the table and took off", " his"),
    ],
    "sequence": [
        ("The days are Monday, Tuesday, {Wednesday},", " Thursday"),
        ("They came in order: January, February, {March},", " April"),
        ("We count: two, four, {six},", " eight"),
        ("We count: one, two, three, {four},", " five"),
        ("The letters: A, B, C, {D},", " E"),
        ("In order: Saturday and then {Sunday} and then", " Monday"),
        ("morning: coffee, {noon}: lunch, evening:", " dinner"),
        ("one plus one is two, two plus one is three, {three} plus {one} is", " four"),
        ("one becomes two, two becomes three, {three} (as you see) becomes", " four"),
    ],
    "copy": [
        (
            "She put the letter into an {envelope}, and then she put a stamp on the",
            " envelope",
        ),
        ("Repeat the word. Word: {garden}. Say it again:", " garden"),
        (
            "He ordered a {pizza} and a glass of water. Ten minutes later the "
            "waiter brought the glass of water and the",
            " pizza",
        ),
        (
            "We bought bread, {cheese} and apples. At home we ate the bread, "
            "the apples and the",
            " cheese",
        ),
        (
            "We bought {bread}, cheese and apples. At home we ate the apples, "
            "the cheese and the",
            " bread",
        ),
        (
            "In the zoo we saw a lion, a {monkey} and a bear. I liked the lion, "
            "my friend liked the bear, and nobody liked the",
            " monkey",
        ),
        ("def area(width, {height}):\n    return width *", " height"),
        ("def total(price, {tax}, name):\n    print(name)\n    return price +", " tax"),
        ("<{table}><row>one</row><row>two</row></", "table"),
        (
            "The {violin} was hers and the drum was mine. I played the drum, "
            "and she played the",
            " violin",
        ),
        (
            "The opposite of war is {peace}. The title of the book is {War} and",
            " Peace",
        ),
    ],
    "association": [
        (
            "We heard that the {fire} had burned all night, and in the morning "
            "the room was full of",
            " smoke",
        ),
        (
            "In our street the {baker} gets up early every morning to make fresh",
            " bread",
        ),
        (
            "When I came in, the {dentist} told me to open my mouth and looked at my",
            " teeth",
        ),
        (
            "I was told that the {pilot} had a good night's rest before he went "
            "to fly the",
            " plane",
        ),
        (
            "On that day the {fisherman} took his boat out on the lake and came "
            "back with a lot of",
            " fish",
        ),
        (
            "After a short wait the {barber} asked me to sit down and began to cut my",
            " hair",
        ),
        (
            "After the bell the {teacher} walked into the room and wrote a word on the",
            " board",
        ),
        (
            "With a big smile she blew out the {candles} and then cut the birthday",
            " cake",
        ),
        ("In the yard the white {hen} sat in the corner and laid an", " egg"),
        (
            "Last night my {tooth} hurt so much that in the end I went to see the",
            " dentist",
        ),
        ("A {spider} in the corner of the room was busy with its", " web"),
    ],
}

PROMPTS = [
    read_marked(kind, marked, answer)
    for kind, examples in MARKED.items()
    for marked, answer in examples
]
