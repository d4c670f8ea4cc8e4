"""ONCE: a profile for a user, and a fuller title and description for an item.

After Liu et al., ONCE: Boosting Content-based Recommendation with Both Open- and Closed-source Large
Language Models, arXiv 2305.06566: what a content-based model reads about users and items is enriched by a
user profiler and a content summarizer. The wording is ours.
"""

from vllm_dare.prompting.subjects import Item, User
from vllm_dare.prompting.wording import Messages, item_facts, one_message, user_facts

_USER = """\
Write the profile of one user from their history. A content-based ranking model will read it beside the \
titles, so name what the titles have in common rather than the titles themselves.

Write exactly these three lines:
Topics: three to six topics that the user cares about, one to three words each, the strongest first, \
separated by commas.
Settings: up to three places, periods or worlds that come up again and again, separated by commas; "none" \
if there are none.
Summary: one sentence of at most 30 words that begins with "This user looks for".

Rules:
- A topic must be carried by at least two titles, if the history has as many. What only disliked titles \
have in common is no topic.
- Recent choices count more than old ones.
- Add nothing before, between or after the lines."""

_ITEM = """\
Enrich what is known about one item. A content-based ranking model will read your answer in place of the \
bare title, so it should understand from it what the item is.

Write exactly these three lines:
Title: the title as it is given, then in brackets what kind of item it is, in at most six words.
Description: two sentences of at most 40 words together: what it is about, then what it is like.
Keywords: five keywords from general to specific, separated by commas.

Rules:
- Use the data below and what you know for certain. If you do not know the item, describe what its data \
says, and nothing else.
- No praise, no ratings, no sales figures.
- Add nothing before, between or after the lines."""


def user_messages(user: User) -> Messages:
    """Ask for a user's profile: topics, settings, a summary."""
    return one_message(_USER, user_facts(user), "The user's profile:")


def item_messages(item: Item) -> Messages:
    """Ask for an item's enriched title and description."""
    return one_message(_ITEM, item_facts(item), "The enriched item:")
