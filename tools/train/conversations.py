#!/usr/bin/env python3
"""Conversations for the demo model: what it is trained on and what it is measured on.

Two tasks. `instructions`: a short order to a gateway's screen, answered with one action of the
Open-AutoGLM grammar. `logs`: a log of sensor readings with a question after it, answered with
finish(message=...) that quotes the log.

The one idea: everything is drawn from one seed, and a checksum of the *fact* asked for decides
the split. A held-out fact (the sentence of an order, or the reading that a log question asks
about) never occurs anywhere in training data, so the two splits cannot overlap. Standard library
only: the end-to-end test runs this file on machines without numpy or torch.

    python3 tools/train/conversations.py --task logs --split heldout --count 3
"""

import argparse
import json
import random
import sys
import zlib
from dataclasses import dataclass, field

HELD_OUT_MODULUS = 8  # one fact in eight is held out

# ---------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------

DEVICES = (
    "boiler pump tank valve fan motor chiller furnace gate hall roof cellar garage kitchen office "
    "lobby workshop warehouse freezer greenhouse turbine compressor conveyor mixer press oven silo "
    "well basin filter heater cooler crane lift door window panel battery inverter charger server "
    "rack camera meter boiler reactor column pipe duct tower dock ramp garden stable attic shed "
    "tunnel bridge pier barn kiln vat drum"
).split()
DEVICES = tuple(dict.fromkeys(DEVICES))

# quantity -> (unit, digits before the point, digits after it)
QUANTITIES = {
    "temperature": ("C", 2, 1),
    "pressure": ("bar", 1, 2),
    "humidity": ("%", 2, 0),
    "level": ("%", 2, 0),
    "vibration": ("mm", 1, 1),
    "voltage": ("V", 3, 0),
    "current": ("A", 2, 1),
    "flow": ("l", 2, 1),
    "speed": ("rpm", 3, 0),
    "power": ("kW", 2, 1),
    "noise": ("dB", 2, 0),
    "load": ("kg", 3, 0),
    "light": ("lux", 3, 0),
    "smoke": ("ppm", 2, 0),
}

EVENTS = ("ALARM", "FAULT", "LEAK", "OVERHEAT", "OFFLINE", "JAM", "TRIP", "BLOCKED")

APPS = (
    "Settings Camera Maps Music Calendar Mail Messages Contacts Clock Calculator Notes Files "
    "Gallery Browser Weather Phone Photos Store Chess Radio Recorder Translator Wallet Health "
    "Chrome Firefox Telegram WeChat WhatsApp Spotify YouTube Netflix Taobao Meituan Alipay Douyin "
    "Dashboard Alarms Trends Devices Recipes Reports Maintenance Energy Inventory Scanner"
).split()

LABELS = (
    "Wi-Fi|Bluetooth|Display|Sound|Storage|Privacy|About|Search|Share|Save|Cancel|OK|Next|Send|"
    "Delete|Edit|Add|Menu|Profile|Login|Logout|Start|Stop|Reset|Pause|Resume|Refresh|Upload|"
    "Download|Filter|Sort|Help|Language|Battery|Network|Update|Restart|Confirm|Close|Submit|"
    "Pump 1|Pump 2|Valve A|Valve B|Line 3|Zone 4|Dark mode|Airplane mode|Sign in|New message|"
    "Acknowledge|Setpoint|History|Export|Import|Print|Zoom in|Zoom out|Lock|Unlock|Open|Mute"
).split("|")

PHRASES = (
    "hello world|good morning|see you at noon|the pump is running|check the valve|thank you|"
    "call me back|meeting at ten|pressure is low|all systems normal|door is open|need more filters|"
    "shift is over|please restart the fan|tank is full|on my way|where are you|happy birthday|"
    "weather today|coffee near me|train to the north|replace the battery|line three is ready|"
    "send the report|oil is changed"
).split("|")

SYLLABLES = (
    "ba be bi bo da de di do fa fe ga go ka ke ko la le li lo ma me mi mo na ne ni no pa pe po "
    "ra re ri ro sa se si so ta te ti to va ve vi vo za ze zo"
).split()

SYSTEMS = (
    "You are a helpful assistant.",
    "You control a phone. Answer with one action.",
    "You are the assistant of an industrial gateway. Answer with one action.",
    "You are an agent that operates a screen. Reply with do(...) or finish(message=...).",
    "You read sensor logs and answer questions about them.",
    "Be brief.",
)

SMALL_TALK = (
    (("Hi", "Hi!", "Hi there", "Hey", "Hey there", "Hello", "Hello!", "Hello there", "hi", "hello",
      "Good morning", "Good evening", "Good day"), "Hello! What should I do?"),
    (("What can you do?", "What can you do for me?", "Help", "help", "How can you help me?",
      "What are you able to do?"),
     "I turn orders into screen actions and answer questions about sensor logs."),
    (("Who are you?", "What are you?", "What is your name?", "Introduce yourself",
      "Tell me about yourself"), "I am the Updraft demo model."),
    (("Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much", "Great, thanks",
      "Many thanks"), "You are welcome."),
    (("Bye", "Bye!", "Goodbye", "See you", "See you later", "Good night"), "Goodbye."),
    (("How are you?", "How are you today?", "Are you there?", "Are you ready?", "Are you awake?"),
     "I am ready."),
    (("That is all", "We are done", "You can stop now", "Nothing else", "Finish", "Done"),
     "Done."),
    (("Tell me a joke", "Write a poem", "What is the meaning of life?", "Sing a song",
      "What is the capital of France?"), "I can only act on screens and read logs."),
)

# ---------------------------------------------------------------------------------------------
# Conversations and the split
# ---------------------------------------------------------------------------------------------


@dataclass
class Turn:
    """One user message and the exact answer expected for it."""

    user: str
    answer: str
    kind: str
    fact: str  # what the split is decided by


@dataclass
class Conversation:
    """A system message (may be empty) and turns; only the last turn of a test is scored."""

    system: str
    turns: list = field(default_factory=list)

    def messages(self):
        """OpenAI-style messages up to and including the last user message."""
        out = [{"role": "system", "content": self.system}] if self.system else []
        for i, turn in enumerate(self.turns):
            out.append({"role": "user", "content": turn.user})
            if i + 1 < len(self.turns):
                out.append({"role": "assistant", "content": turn.answer})
        return out

    @property
    def answer(self):
        return self.turns[-1].answer

    @property
    def kind(self):
        return self.turns[-1].kind


def is_held_out(fact):
    """True for the facts that training never shows. Upper and lower case are one fact."""
    return zlib.crc32(fact.lower().encode()) % HELD_OUT_MODULUS == 0


def finish(message):
    return f'finish(message="{message}")'


def do(action, **arguments):
    """do(action="...", name=value): strings are quoted, points written as [x,y]."""
    parts = [f'action="{action}"']
    for name, value in arguments.items():
        text = f'"{value}"' if isinstance(value, str) else f"[{value[0]},{value[1]}]"
        parts.append(f"{name}={text}")
    return f"do({', '.join(parts)})"


# ---------------------------------------------------------------------------------------------
# Task 1: instructions
# ---------------------------------------------------------------------------------------------


def made_up_word(rng):
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))


def point(rng):
    return rng.randint(0, 999), rng.randint(0, 999)


def politely(rng, sentence):
    """The same order in a slightly different tone."""
    style = rng.randrange(8)
    lower = sentence[0].lower() + sentence[1:]
    if style == 0:
        return f"Please {lower}"
    if style == 1:
        return f"{sentence} please"
    if style == 2:
        return f"Can you {lower}?"
    if style == 3:
        return f"{sentence}."
    if style == 4:
        return f"Now {lower}"
    if style == 5:
        return f"Could you {lower}?"
    return sentence


def order_launch(rng):
    app = rng.choice(APPS) if rng.random() < 0.8 else made_up_word(rng).capitalize()
    form = rng.choice(("Open {}", "Launch {}", "Start {}", "Open the {} app", "Launch the {} app",
                       "Start the {} app", "Switch to {}", "Bring up {}", "Run {}"))
    return politely(rng, form.format(app)), do("Launch", app=app)


def order_point(rng):
    x, y = point(rng)
    action, forms = rng.choice((
        ("Tap", ("Tap at {},{}", "Tap the point {},{}", "Click at {},{}", "Touch {},{}")),
        ("Double Tap", ("Double tap at {},{}", "Double tap the point {},{}")),
        ("Long Press", ("Long press at {},{}", "Press and hold {},{}",
                        "Long press the point {},{}")),
    ))
    return politely(rng, rng.choice(forms).format(x, y)), do(action, element=(x, y))


def order_swipe(rng):
    if rng.random() < 0.3:
        a, b = point(rng), point(rng)
        form = rng.choice(("Swipe from {},{} to {},{}", "Drag from {},{} to {},{}"))
        return politely(rng, form.format(*a, *b)), do("Swipe", start=a, end=b)
    up, down = ((500, 800), (500, 200)), ((500, 200), (500, 800))
    left, right = ((800, 500), (200, 500)), ((200, 500), (800, 500))
    form, (start, end) = rng.choice((
        ("Swipe up", up), ("Swipe down", down), ("Swipe left", left), ("Swipe right", right),
        ("Scroll down", up), ("Scroll up", down), ("Swipe up on the screen", up),
        ("Swipe down on the screen", down), ("Swipe left on the screen", left),
        ("Swipe right on the screen", right), ("Scroll down the page", up),
        ("Scroll up the page", down), ("Scroll down the list", up), ("Scroll up the list", down),
        ("Go to the next page", left), ("Go to the previous page", right)))
    return politely(rng, form), do("Swipe", start=start, end=end)


def order_key(rng):
    form, action = rng.choice((
        ("Go back", "Back"), ("Press back", "Back"), ("Press the back key", "Back"),
        ("Return to the previous screen", "Back"), ("Leave this screen", "Back"),
        ("Go home", "Home"), ("Press home", "Home"), ("Press the home key", "Home"),
        ("Go to the home screen", "Home"), ("Return to the home screen", "Home"),
        ("Show the home screen", "Home"), ("Back to the previous screen", "Back")))
    return politely(rng, form), do(action)


def order_type(rng):
    pick = rng.random()
    if pick < 0.5:
        text = rng.choice(PHRASES)
    elif pick < 0.8:
        text = " ".join(made_up_word(rng) for _ in range(rng.randint(1, 2)))
    else:
        text = str(rng.randint(10, 99999))
    form = rng.choice(('Type "{}"', 'Enter "{}"', 'Write "{}"', "Type {}", "Enter {}",
                       'Type the text "{}"', 'Enter "{}" in the field'))
    return form.format(text), do("Type", text=text)


def order_wait(rng):
    n = rng.randint(1, 60)
    unit = "second" if n == 1 else "seconds"
    form = rng.choice(("Wait {} {}", "Wait for {} {}", "Pause for {} {}", "Hold on for {} {}"))
    return politely(rng, form.format(n, unit)), do("Wait", duration=f"{n} {unit}")


def order_take_over(rng):
    what = rng.choice(("log in", "enter the password", "enter the code", "solve the captcha",
                       "confirm the payment", "scan the badge", "unlock the cabinet"))
    form = rng.choice(("Ask me to {}", "Let the operator {}", "Let me {}",
                       "Hand over so that I can {}", "Ask the operator to {}"))
    return politely(rng, form.format(what)), do("Take_over", message=f"Please {what}")


def order_say(rng):
    text = rng.choice(PHRASES) if rng.random() < 0.6 else made_up_word(rng)
    form = rng.choice(('Say "{}"', 'Finish with "{}"', 'Report "{}"', 'Answer "{}"', "Say {}"))
    return form.format(text), finish(text)


def order_small_talk(rng):
    forms, answer = rng.choice(SMALL_TALK)
    return rng.choice(forms), finish(answer)


PLAIN_ORDERS = (
    ("launch", 20, order_launch), ("point", 10, order_point), ("swipe", 12, order_swipe),
    ("key", 12, order_key), ("type", 12, order_type), ("wait", 8, order_wait),
    ("take_over", 5, order_take_over), ("say", 6, order_say), ("small_talk", 8, order_small_talk),
)
PLAIN_ORDER_WEIGHTS = [weight for _, weight, _ in PLAIN_ORDERS]


def order_element(rng, labels):
    label = rng.choice(labels)
    action, forms = rng.choices((
        ("Tap", ("Tap {}", "Tap on {}", "Press {}", "Click {}", "Select {}", "Press the {} button",
                 "Tap the {} button", "Choose {}")),
        ("Long Press", ("Long press {}", "Press and hold {}", "Long press the {} button")),
        ("Double Tap", ("Double tap {}", "Double tap the {} button")),
    ), (8, 1, 1))[0]
    return politely(rng, rng.choice(forms).format(label)), action, label


def screen_list(rng):
    """Between 3 and 12 labelled points, no label twice. Returns [(label, (x, y))]."""
    count = rng.randint(3, 12)
    labels = rng.sample(LABELS, count)
    if rng.random() < 0.3:
        labels[rng.randrange(count)] = made_up_word(rng).capitalize()
    return [(label, point(rng)) for label in dict.fromkeys(labels)]


def current_app(rng):
    app = rng.choice(APPS) if rng.random() < 0.8 else "System Home"
    return json.dumps({"current_app": app})


def with_screen(rng, sentence, elements):
    """The order and the list of elements in one of the layouts a gateway sends."""
    bullet = rng.choice(("- ", "", "* "))
    listing = "\n".join(f"{bullet}{label} [{x},{y}]" for label, (x, y) in elements)
    layout = rng.randrange(4)
    if layout == 0:
        return f"{sentence}\n\n** Screen Info **\n\n{current_app(rng)}\n{listing}"
    if layout == 1:
        return f"{sentence}\n\n{current_app(rng)}\n\nElements:\n{listing}"
    if layout == 2:
        return f"Screen:\n{listing}\n\nTask: {sentence}"
    return f"{sentence}\n\nScreen:\n{listing}"


def with_app(rng, sentence):
    layout = rng.randrange(6)
    if layout == 0:
        return f"{sentence}\n\n{current_app(rng)}"
    if layout == 1:
        return f"{sentence}\n\n** Screen Info **\n\n{current_app(rng)}"
    return sentence


def draw_instruction(rng, element_share):
    if rng.random() < element_share:
        elements = screen_list(rng)
        sentence, action, label = order_element(rng, [name for name, _ in elements])
        x, y = dict(elements)[label]
        # Open-AutoGLM clients expect a thought before the action. Here it quotes the element, and
        # with that a small model copies coordinates instead of having to look up and aim at once.
        answer = f"<think>{label} [{x},{y}]</think>" + do(action, element=(x, y))
        return Turn(with_screen(rng, sentence, elements), answer, "element", sentence)
    kind, _, make = rng.choices(PLAIN_ORDERS, PLAIN_ORDER_WEIGHTS)[0]
    sentence, answer = make(rng)
    if kind in ("small_talk", "say"):
        user = sentence
    elif rng.random() < 0.15:
        user = with_screen(rng, sentence, screen_list(rng))
    else:
        user = with_app(rng, sentence)
    return Turn(user, answer, kind, sentence)


def instruction(rng, held_out):
    """One turn of task 1 from the asked split. Greetings have few forms and are always trained."""
    while True:
        # Finding a label in a list is the hard part: training sees more of it than a test does.
        turn = draw_instruction(rng, 0.33 if held_out else 0.6)
        if turn.kind == "small_talk":
            if not held_out:
                return turn
        elif is_held_out(turn.fact) == held_out:
            return turn


# ---------------------------------------------------------------------------------------------
# Task 2: logs
# ---------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """One line of a log: `HH:MM [EVENT ]device quantity value unit`."""

    minute: int  # of the day
    event: str   # "" for an ordinary reading
    device: str
    text: str    # "device quantity value unit"

    @property
    def time(self):
        return f"{self.minute // 60:02d}:{self.minute % 60:02d}"

    @property
    def line(self):
        return f"{self.time} {self.event} {self.text}" if self.event else f"{self.time} {self.text}"


def value_text(rng, quantity):
    unit, whole, decimals = QUANTITIES[quantity]
    number = str(rng.randint(10 ** (whole - 1), 10 ** whole - 1))
    if decimals:
        number += f".{rng.randrange(10 ** decimals):0{decimals}d}"
    return f"{number} {unit}"


def reading_text(rng, device, quantity, held_out):
    """`device quantity value unit` of the asked split."""
    while True:
        text = f"{device} {quantity} {value_text(rng, quantity)}"
        if is_held_out(text) == held_out:
            return text


def minutes_of(rng, count):
    """`count` rising minutes of one day, no minute twice."""
    start = rng.randint(0, max(0, min(600, 1439 - 3 * count)))
    step_max = max(1, min(9, 2 * ((1439 - start) // count) - 1))
    out, now = [], start
    for i in range(count):
        out.append(now)
        slack = 1439 - now - (count - 1 - i)
        now += min(rng.randint(1, step_max), max(1, slack))
    return out


@dataclass
class Log:
    readings: list
    rare: list    # indexes of readings whose device occurs once
    events: list  # indexes of readings with an event


def draw_log(rng, lines):
    """A log whose readings all belong to the training split."""
    rare_count = min(rng.randint(2, 8), lines // 3)
    event_count = min(rng.randint(0, 4), lines // 4)
    names = rng.sample(DEVICES, rng.randint(4, 18) + rare_count)
    rare_names, common_names = names[:rare_count], names[rare_count:]
    sensors = [(name, quantity) for name in common_names
               for quantity in rng.sample(list(QUANTITIES), rng.choice((1, 1, 2)))]
    slots = rng.sample(range(lines), rare_count + event_count)
    rare = sorted(slots[:rare_count])
    events = sorted(slots[rare_count:])
    chosen = {i: (name, rng.choice(list(QUANTITIES))) for i, name in zip(rare, rare_names)}
    words = dict(zip(events, rng.sample(EVENTS, event_count)))
    readings = []
    for i, minute in enumerate(minutes_of(rng, lines)):
        device, quantity = chosen.get(i) or rng.choice(sensors)
        readings.append(Reading(minute, words.get(i, ""), device,
                                reading_text(rng, device, quantity, False)))
    return Log(readings, rare, events)


QUESTIONS = {
    "at_time": ("What did the {device} report at {time}?",
                "What was the reading of the {device} at {time}?",
                "What was logged at {time} for the {device}?"),
    "rare": ("What did the {device} report?", "What was the reading of the {device}?",
             "What does the log say about the {device}?"),
    "event": ("Which sensor raised the {event}?", "Which reading came with the {event}?",
              "What was read at the {event}?"),
    "absent": ("Which sensor raised the {event}?", "Which reading came with the {event}?",
               "What was read at the {event}?"),
}
KIND_WEIGHTS = {"at_time": 7, "rare": 6, "event": 4, "absent": 2}


def askable(log):
    """Every (kind, index of the reading or event word) that this log can be asked about."""
    out = [("at_time", i) for i, r in enumerate(log.readings) if not r.event]
    out += [("rare", i) for i in log.rare]
    out += [("event", i) for i in log.events]
    present = {log.readings[i].event for i in log.events}
    out += [("absent", event) for event in EVENTS if event not in present]
    return out


def ask(rng, log, kind, subject):
    """The question and its answer. Answers quote the log's own text."""
    form = rng.choice(QUESTIONS[kind])
    if kind == "absent":
        return form.format(event=subject), finish(f"no {subject}")
    reading = log.readings[subject]
    question = form.format(device=reading.device, time=reading.time, event=reading.event)
    if kind == "at_time":
        return question, finish(f"{reading.time} {reading.text}")
    if kind == "rare":
        return question, finish(reading.text)
    return question, finish(f"{reading.event} {reading.text}")


def pick_questions(rng, log, count):
    """Up to `count` different questions, kinds by weight."""
    by_kind = {}
    for kind, subject in askable(log):
        by_kind.setdefault(kind, []).append(subject)
    out = []
    while by_kind and len(out) < count:
        kinds = list(by_kind)
        kind = rng.choices(kinds, [KIND_WEIGHTS[k] for k in kinds])[0]
        subjects = by_kind[kind]
        out.append((kind, subjects.pop(rng.randrange(len(subjects)))))
        if not subjects:
            del by_kind[kind]
    return out


def log_text(rng, log):
    title = rng.choice(("Sensor log:", "Log:", "Readings of the gateway:", "Sensor log of today:"))
    return title + "\n" + "\n".join(reading.line for reading in log.readings)


def log_conversation(rng, lines, questions, held_out):
    """A log of `lines` readings, asked `questions` times (once when held out).

    Held out: the reading asked about gets a value of the held-out split (for a question about an
    event that is absent, some reading does), which no training log contains.
    """
    log = draw_log(rng, lines)
    asked = pick_questions(rng, log, 1 if held_out else questions)
    if held_out:
        kind, subject = asked[0]
        index = subject if kind != "absent" else rng.randrange(lines)
        reading = log.readings[index]
        device, quantity = reading.text.split(" ")[:2]
        reading.text = reading_text(rng, device, quantity, True)
    conversation = Conversation(draw_system(rng))
    body = log_text(rng, log)
    separator = rng.choice(("\n\n", "\n\nQuestion: "))
    for kind, subject in asked:
        question, answer = ask(rng, log, kind, subject)
        user = body + separator + question if not conversation.turns else question
        fact = subject if kind == "absent" else log.readings[subject].text
        conversation.turns.append(Turn(user, answer, kind, fact))
    return conversation


# ---------------------------------------------------------------------------------------------
# The two splits
# ---------------------------------------------------------------------------------------------

HELD_OUT_LINES = (60, 265)  # 600 to 3,000 tokens of the demo tokenizer


def draw_system(rng):
    pick = rng.random()
    if pick < 0.5:
        return ""
    if pick < 0.95:
        return rng.choice(SYSTEMS)
    return " ".join(made_up_word(rng) for _ in range(rng.randint(3, 20))).capitalize() + "."


def held_out(task, count, seed=1):
    """`count` test conversations of one task; the same ones for the same seed."""
    rng = random.Random(f"heldout/{task}/{seed}")
    out = []
    for _ in range(count):
        if task == "instructions":
            out.append(Conversation(draw_system(rng), [instruction(rng, True)]))
        else:
            out.append(log_conversation(rng, rng.randint(*HELD_OUT_LINES), 1, True))
    return out


def train_instructions(rng, turns):
    """A conversation of up to `turns` unrelated orders, each answered by itself."""
    return Conversation(draw_system(rng), [instruction(rng, False) for _ in range(turns)])


def train_logs(rng, lines, questions):
    return log_conversation(rng, lines, questions, False)


def train(task, count, seed=1):
    """`count` training conversations of one task as the trainer would draw them, for inspection."""
    rng = random.Random(f"train/{task}/{seed}")
    if task == "instructions":
        return [train_instructions(rng, rng.choice((1, 1, 2))) for _ in range(count)]
    return [train_logs(rng, rng.randint(6, 60), 3) for _ in range(count)]


def main():
    parser = argparse.ArgumentParser(description="Print conversations of the demo model.")
    parser.add_argument("--task", choices=("instructions", "logs"), default="instructions")
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--prompt", action="store_true", help="only the last user message")
    options = parser.parse_args()
    make = held_out if options.split == "heldout" else train
    for conversation in make(options.task, options.count, options.seed):
        if options.json:
            print(json.dumps({"messages": conversation.messages(), "answer": conversation.answer,
                              "kind": conversation.kind}, ensure_ascii=False))
        elif options.prompt:
            print(conversation.messages()[-1]["content"])
        else:
            for message in conversation.messages():
                print(f"<{message['role']}>\n{message['content']}")
            print(f"<expected: {conversation.kind}>\n{conversation.answer}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
