"""The generator: deterministic, its splits disjoint, its answers right.

Answers are recomputed here from nothing but the text a client sends: the log is parsed line by
line and the question matched against the phrases a reader would understand.
"""

import ast
import collections
import random
import re
import unittest
import zlib

import places  # noqa: F401  (puts tools/train on the path)
import conversations

LINE = re.compile(r"(\d\d:\d\d) (?:([A-Z]+) )?([a-z]+\d?) ([a-z]+) (\d+(?:\.\d+)?) (\S+)")
ACTION = re.compile(
    r'finish\(message="[^"]+"\)'
    r'|do\(action="(?:Back|Home)"\)'
    r'|do\(action="(?:Tap|Double Tap|Long Press)", element=\[\d{1,3},\d{1,3}\]\)'
    r'|do\(action="Swipe", start=\[\d{1,3},\d{1,3}\], end=\[\d{1,3},\d{1,3}\]\)'
    r'|do\(action="Launch", app="[^"]+"\)|do\(action="Type", text="[^"]+"\)'
    r'|do\(action="Wait", duration="\d+ seconds?"\)|do\(action="Take_over", message="[^"]+"\)')


def first_crc_in_eight(text):
    return zlib.crc32(text.lower().encode()) % 8 == 0


def log_lines(user):
    return [m.groups() for m in map(LINE.fullmatch, user.split("\n")) if m]


def quote(line):
    return " ".join(part for part in line[2:])


def solve_log(user):
    """The answer to a log prompt, by a reader that shares no code with the generator."""
    lines, question = log_lines(user), user.split("\n")[-1].removeprefix("Question: ")
    event = re.search(r"the ([A-Z]+)\?", question)
    device = re.search(r"the ([a-z]+\d?)( at | report|\?)", question)
    time = re.search(r"\d\d:\d\d", question)
    wants_time = question.startswith(("When", "At what time"))
    if event:
        found = [line for line in lines if line[1] == event[1]]
        assert len(found) <= 1
        if not found:
            return f"no {event[1]}"
        return f"{event[1]} at {found[0][0]}" if wants_time else f"{event[1]} {quote(found[0])}"
    if time:
        found = [line for line in lines if line[0] == time[0]]
        assert len(found) == 1 and found[0][2] == device[1]
        return f"{time[0]} {quote(found[0])}"
    if "first" in question or "last" in question:
        line = lines[0] if "first" in question else lines[-1]
        return f"{line[0]} {quote(line)}"
    found = [line for line in lines if line[2] == device[1]]
    assert len(found) == 1, (question, found)
    return f"{device[1]} at {found[0][0]}" if wants_time else quote(found[0])


def solve_order(user, kind):
    """The action of an order, where it can be read off the text; None where it is a convention."""
    numbers = [int(n) for n in re.findall(r"\d+", user.split("\n\n")[0])]
    if kind == "element":
        points = re.findall(r"^(?:[-*] )?(.+) \[(\d+),(\d+)\]$", user, re.M)
        asked = [line for line in user.split("\n") if "[" not in line and "{" not in line]
        asked = next(line for line in asked if re.search(
            r"tap|press|click|select|choose", line, re.I))
        named = [p for p in points if re.search(rf"\b{re.escape(p[0])}(?!\w)", asked)]
        best = max(named, key=lambda p: len(p[0]))
        action = ("Double Tap" if "ouble tap" in asked
                  else "Long Press" if re.search("ong press|and hold", asked) else "Tap")
        return (f"<think>{best[0]} [{best[1]},{best[2]}]</think>"
                f'do(action="{action}", element=[{best[1]},{best[2]}])')
    if "Screen:" in user.split("\n")[0]:
        return None
    if kind == "wait":
        unit = "second" if numbers[0] == 1 else "seconds"
        return f'do(action="Wait", duration="{numbers[0]} {unit}")'
    if kind == "swipe" and len(numbers) == 4:
        return 'do(action="Swipe", start=[{},{}], end=[{},{}])'.format(*numbers)
    if kind == "point":
        sentence = user.split("\n")[0].lower()
        action = ("Double Tap" if "double" in sentence
                  else "Long Press" if "long" in sentence or "hold" in sentence else "Tap")
        return f'do(action="{action}", element=[{numbers[0]},{numbers[1]}])'
    return None


class Determinism(unittest.TestCase):
    def test_the_same_seed_gives_the_same_conversations(self):
        for task in ("instructions", "logs"):
            first, again = conversations.held_out(task, 5, 7), conversations.held_out(task, 5, 7)
            self.assertEqual([c.messages() for c in first], [c.messages() for c in again])
            other = conversations.held_out(task, 5, 8)
            self.assertNotEqual([c.messages() for c in first], [c.messages() for c in other])

    def test_a_shorter_test_is_the_beginning_of_a_longer_one(self):
        long, short = conversations.held_out("logs", 6), conversations.held_out("logs", 2)
        self.assertEqual([c.messages() for c in long[:2]], [c.messages() for c in short])


class Splits(unittest.TestCase):
    def test_no_held_out_order_is_a_training_order(self):
        rng = random.Random(3)
        trained = {t.fact.lower() for _ in range(4000)
                   for t in conversations.train_instructions(rng, 2).turns if t.kind != "small_talk"}
        tested = {c.turns[0].fact.lower() for c in conversations.held_out("instructions", 500)}
        self.assertFalse(trained & tested)
        self.assertTrue(all(first_crc_in_eight(fact) for fact in tested))
        self.assertFalse(any(first_crc_in_eight(fact) for fact in trained))

    def test_no_training_log_holds_a_held_out_reading_and_every_test_log_asks_for_one(self):
        rng = random.Random(4)
        for _ in range(60):
            turn = conversations.train_logs(rng, rng.randint(3, 200), 3).turns[0]
            for line in log_lines(turn.user):
                self.assertFalse(first_crc_in_eight(quote(line)), line)
        for test in conversations.held_out("logs", 200):
            held_out = [line for line in log_lines(test.turns[0].user)
                        if first_crc_in_eight(quote(line))]
            self.assertEqual(len(held_out), 1)
            if test.kind in ("at_time", "rare", "event"):
                self.assertIn(quote(held_out[0]), test.answer)


class Answers(unittest.TestCase):
    def test_every_log_answer_follows_from_the_log(self):
        kinds = collections.Counter()
        for test in conversations.held_out("logs", 200):
            kinds[test.kind] += 1
            self.assertEqual(test.answer, f'finish(message="{solve_log(test.turns[0].user)}")')
        self.assertEqual(len(kinds), 4)
        rng = random.Random(5)
        for _ in range(40):
            turns = conversations.train_logs(rng, rng.randint(3, 120), 6).turns
            log = turns[0].user.rpartition("\n\n")[0]
            for i, turn in enumerate(turns):
                user = turn.user if i == 0 else f"{log}\n\n{turn.user}"
                self.assertEqual(turn.answer, f'finish(message="{solve_log(user)}")')

    def test_every_action_is_one_the_client_can_parse(self):
        rng = random.Random(6)
        turns = [t for _ in range(3000) for t in conversations.train_instructions(rng, 1).turns]
        turns += [c.turns[0] for c in conversations.held_out("instructions", 500)]
        kinds = collections.Counter(turn.kind for turn in turns)
        self.assertGreaterEqual(len(kinds), 9)
        for turn in turns:
            thought, end, action = turn.answer.rpartition("</think>")
            self.assertEqual(bool(thought.startswith("<think>") and end), turn.kind == "element")
            self.assertRegex(action, rf"\A(?:{ACTION.pattern})\Z")
            self.assertIsInstance(ast.parse(action, mode="eval").body, ast.Call)

    def test_points_and_durations_are_those_of_the_order(self):
        solved = collections.Counter()
        for test in conversations.held_out("instructions", 500):
            expected = solve_order(test.turns[0].user, test.kind)
            if expected is not None:
                solved[test.kind] += 1
                self.assertEqual(test.answer, expected, test.turns[0].user)
        self.assertGreaterEqual(set(solved), {"element", "wait", "point", "swipe"})

    def test_a_named_text_or_app_is_copied_from_the_order(self):
        for test in conversations.held_out("instructions", 500):
            if test.kind in ("launch", "type", "say"):
                copied = re.findall(r'"([^"]*)"', test.answer)[-1]
                self.assertIn(copied, test.turns[0].user)

    def test_times_of_a_log_rise_and_occur_once(self):
        for test in conversations.held_out("logs", 50):
            times = [line[0] for line in log_lines(test.turns[0].user)]
            self.assertEqual(times, sorted(set(times)))


if __name__ == "__main__":
    unittest.main()
