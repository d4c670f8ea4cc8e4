"""KAR: what moves a user, and what an item is, factor by factor.

After Xi et al., Towards Open-World Recommendation with Knowledge Augmentation from Large Language Models,
arXiv 2306.10933: preference reasoning and factual knowledge, asked for one factor at a time, are encoded
and given to any ranking model as features. The wording is ours.
"""

from vllm_dare.prompting.subjects import Item, User
from vllm_dare.prompting.wording import Messages, answer_fields, item_facts, one_message, user_facts

FACTORS = ("theme", "plot", "mood", "setting", "style", "creators", "era", "audience")
"""What is asked for besides the items' own attributes; these suit films, books, games and music."""

_USER = """\
Work out from one user's history what this user prefers, factor by factor. A ranking model will read your \
answer as features of the user, so write what the history supports, and nothing else.

Factors: {factors}.

Write one line for each factor, in this order and in this form:
<factor>: likes ...; avoids ...; shown by <title>, <title>.

Rules:
- At most 25 words a line. Name one or two titles, spelled as in the history.
- Recent choices count more than old ones.
- Where the history shows no liking or no dislike, write "nothing clear" for it.
- No introduction, no conclusion, no recommendations."""

_ITEM = """\
Write down what is known about one item, factor by factor. A ranking model will read your answer as \
features of the item, so write facts: what the data below says, and what you know for certain.

Factors: {factors}.

Write one line for each factor, in this order and in this form:
<factor>: <facts, separated by commas>.

Rules:
- At most 20 words a line.
- Where you do not know, write "not known"; do not guess.
- No introduction, no conclusion, no praise."""


def user_messages(user: User) -> Messages:
    """Ask for a user's preferences."""
    factors = ", ".join(answer_fields(user.fields, FACTORS))
    return one_message(_USER.format(factors=factors), user_facts(user), "The user's preferences:")


def item_messages(item: Item) -> Messages:
    """Ask for the facts of an item."""
    factors = ", ".join(answer_fields(item.attributes, FACTORS))
    return one_message(_ITEM.format(factors=factors), item_facts(item), "The item's facts:")
