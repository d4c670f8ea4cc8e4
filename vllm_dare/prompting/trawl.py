"""TRAWL: of all that is known of a user or an item, what helps to rank.

After Luo et al., TRAWL: External Knowledge-Enhanced Recommendation with LLM Assistance, arXiv 2403.06642: a
model extracts recommendation knowledge along key factors from raw, noisy material, with what common sense
adds, before it is encoded and adapted for ranking. The wording is ours.
"""

from vllm_dare.prompting.subjects import Item, User
from vllm_dare.prompting.wording import Messages, answer_fields, item_facts, one_message, user_facts

FACTORS = ("theme", "mood", "setting", "style", "creators", "audience")
"""The key factors besides the items' own attributes; these suit films, books, games and music."""

_USER_TEXT = 160  # characters of each item's texts
_USER = """\
Extract from one user's raw history what helps to rank items for this user, and drop the rest. A ranking \
model will read your answer.

Key factors: {factors}.

Write a line of this form for each of the three to five key factors that decided most choices, the \
strongest first:
<factor> (<strong, moderate or weak>): <value>, <value>.
Then write these three lines:
Rank higher: the kinds of items this user would choose next, in at most 20 words.
Rank lower: the kinds of items this user would pass over, in at most 20 words.
Lately: how the last choices differ from the earlier ones, in at most 15 words, or "no change".

Rules:
- One odd choice is noise; leave it out.
- Where the history does not tell, write "not shown".
- Add nothing before or after the lines."""

_ITEM = """\
Extract from the raw data about one item what helps to rank it for users. Drop what does not, such as \
advertising, formats, prices and repetitions. A ranking model will read your answer.

Key factors: {factors}.

Write a line of this form for each key factor, in the order above:
<factor>: <value>, <value>.
Then write these three lines:
Inferred: what the data does not say, but common sense concludes from it, in at most 20 words, or "nothing".
Chosen by: the kinds of users who would choose it, in at most 15 words.
Passed over by: the kinds of users who would not, in at most 15 words.

Rules:
- At most 15 words for a factor; "not known" where neither the data nor certain knowledge tells.
- Add nothing before or after the lines."""


def user_messages(user: User) -> Messages:
    """Ask for what in a user's history helps to rank items."""
    factors = ", ".join(answer_fields(user.fields, FACTORS))
    facts = user_facts(user, _USER_TEXT)
    return one_message(_USER.format(factors=factors), facts, "What helps to rank for this user:")


def item_messages(item: Item) -> Messages:
    """Ask for what in an item's data helps to rank it."""
    factors = ", ".join(answer_fields(item.attributes, FACTORS))
    return one_message(_ITEM.format(factors=factors), item_facts(item), "What helps to rank this item:")
