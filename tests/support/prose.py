"""English to measure models on, written for these tests: about 700 tokens, and prompts to continue or answer."""

TEXT = """\
The lighthouse keeper's ledger was the first thing that Marta found when she unlocked the tower. It lay \
open on the table by the window, as if the old man had only gone down to look at the boats and would be \
back before the kettle boiled. Each line held a date, the hour at which the lamp was lit, the direction of \
the wind and a short remark. Most of the remarks were about the weather. On the third of November, 1911, \
he had written that the fog was so thick that gulls walked along the gallery rather than fly. On the next \
day there was no entry at all.

She carried the book to the light and turned the pages slowly. Somewhere in the middle the handwriting \
changed. The letters became smaller and leaned to the left, and the ink was no longer black but a watery \
blue. Whoever wrote these pages had counted ships instead of storms: two steamers and a schooner on \
Monday, nothing on Tuesday, eleven fishing boats on Wednesday, when the herring came back. Beside the \
number eleven there was a small drawing of a fish that wore a crown.

To understand how such a lamp works, it helps to know a little about lenses. A flame sends its light in \
every direction, and most of it is lost to the sky, the floor and the walls. A large lens could gather it \
into a beam, but a large lens of ordinary shape would be as thick as a barrel and too heavy to turn. In \
1822 a French engineer proposed to cut away everything but the surface, since only the surface bends the \
light, and to arrange what remained in rings. The result looks like a glass beehive. It weighs a fraction \
of the solid lens and throws a beam that can be seen from more than thirty kilometres away, provided that \
the air is clear and that the observer stands high enough above the water for the curve of the earth not \
to hide it.

The distance to the horizon follows from a right triangle. If the eye is at a height h above the sea and \
the radius of the earth is r, then the square of the distance is (r + h) squared minus r squared, which is \
nearly 2 times r times h when h is small. For an eye at 2 metres this gives about 5 kilometres; for a lamp \
at 50 metres it gives about 25. The two add up, because the line of sight touches the water somewhere \
between the ship and the tower.

Marta did not care about triangles. She wanted to know who had drawn the fish. In the village they told \
her three different stories. The baker said that the keeper's daughter had kept the light for a whole \
winter while her father lay ill, and that the harbour office never noticed. The priest, who had read the \
registers, said that there had never been a daughter. And the woman who sold nets only laughed, took the \
book from her hands, and pointed at the last page, where somebody had pressed a blue flower between the \
paper and the cover. "Ask the sea," she said. "It was here before the tower, and it remembers everybody \
who left a light burning for it."
"""

QUESTIONS = (
    "Why is the sky blue? Explain it to a curious child.",
    "Write a short story about a fox who learns to read.",
    "Give me step by step instructions for making bread at home.",
    "Explain the difference between a list and a tuple in Python, with an example.",
    "Describe the city of Rome to somebody who has never been there.",
)
"""For a model tuned for conversations; each answer is longer than 64 tokens."""

BEGINNINGS = (
    "The history of the bicycle begins in",
    "Once upon a time, in a village at the foot of a mountain, there lived",
    "def fibonacci(n):\n    ",
    "Photosynthesis is the process by which plants",
    "Dear Ms. Harper,\n\nThank you for your letter of",
)
"""For a base model, to continue."""
