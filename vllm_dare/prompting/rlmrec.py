"""RLMRec: profiles as JSON, with a summary and the reasoning behind it.

After Ren et al., Representation Learning with Large Language Models for Recommendation, arXiv 2310.15950: an
item's profile says which users would enjoy it, a user's which items; their embeddings are aligned with those
of collaborative filtering. Item profiles come first, and user prompts show them: give them as a column of
the item table. The wording is ours.
"""

from vllm_dare.prompting.subjects import Item, User
from vllm_dare.prompting.wording import Messages, item_facts, one_message, user_facts

_USER_TEXT = 300  # characters of each item's texts, such as its profile
_FORM = """\
Answer with one JSON object on one line, and nothing around it:
{"summary": "...", "reasoning": "..."}"""

_RULES = """\
Rules:
- Both values are strings without line breaks; put a backslash before a quotation mark in them.
- Write what the data supports. Do not list titles in the summary."""

_USER = f"""\
Write the profile of one user from their history: which kinds of items they are likely to enjoy. The \
summary will be embedded, and aligned with what a recommender has learned from the users' behaviour.

{_FORM}
summary: at most 50 words on the kinds of items, with their attributes; begin with "This user enjoys".
reasoning: at most 40 words on which choices led you there; begin with "The history shows".

{_RULES}
- Recent choices count more than old ones; disliked ones show what to leave out."""

_ITEM = f"""\
Write the profile of one item: which kinds of users are likely to enjoy it. The summary will be embedded, \
and aligned with what a recommender has learned from the users' behaviour.

{_FORM}
summary: at most 50 words on the users' tastes that the item meets; begin with "Enjoyed by users who".
reasoning: at most 40 words on which attributes led you there; begin with "The data shows".

{_RULES}
- If you do not know the item, rely on its data alone."""


def user_messages(user: User) -> Messages:
    """Ask for a user's profile as JSON."""
    return one_message(_USER, user_facts(user, _USER_TEXT), "The user's profile as JSON:")


def item_messages(item: Item) -> Messages:
    """Ask for an item's profile as JSON."""
    return one_message(_ITEM, item_facts(item), "The item's profile as JSON:")
