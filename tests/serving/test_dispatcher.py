"""The dispatcher: like rows share a batch, a long answer holds nobody up, and one that is not wanted any more goes."""

from __future__ import annotations

import dataclasses
import queue
import time

import pytest

from mmjax.data.batch import Item
from mmjax.decoding.generate import make_options
from mmjax.serving.dispatcher import Busy, Dispatcher, Row, Token, _progress
from mmjax.types import ask


@pytest.fixture
def dispatcher(model):
    made = Dispatcher(model, batch_size=4, capacity=10)
    yield made
    made.close()


def make_row(model, text="what colour ?", tokens=8, **options):
    """A row and the queue of its reports."""
    news = queue.Queue()
    chosen = make_options(model, {"max_new_tokens": tokens, "eos_token_id": (24,), **options})
    chosen = dataclasses.replace(chosen, eos_token_id=())  # never ends by itself
    return Row(model.processor.prompt(ask(text), "chat"), chosen, (), news.put), news


def last(news):
    """The final report."""
    while (progress := news.get(timeout=120)).finish is None:
        pass
    return progress


def test_like_rows_share_a_batch(model, dispatcher, monkeypatch):
    batches = []
    decode = dispatcher._decode
    monkeypatch.setattr(dispatcher, "_decode", lambda rows, kind: batches.append(len(rows)) or decode(rows, kind))
    pairs = [make_row(model, tokens=9 + number) for number in range(6)] + [make_row(model, do_sample=True)]
    dispatcher.submit([row for row, _ in pairs])
    answers = [last(news) for _, news in pairs]
    assert [len(answer.tokens) for answer in answers] == [9, 10, 11, 12, 13, 14, 8]
    assert sorted(batches) == [1, 2, 4], "four at once, the other two, and the one that draws"
    assert len({tuple(token.id for token in answer.tokens[:9]) for answer in answers[:6]}) == 1


def test_a_long_answer_holds_nobody_up(model, dispatcher):
    long, news_of_long = make_row(model, tokens=150)
    dispatcher.submit([long])
    news_of_long.get(timeout=120)  # it is under way
    short, news = make_row(model)
    dispatcher.submit([short])
    last(news)
    reports = [news_of_long.get() for _ in range(news_of_long.qsize())]
    assert all(progress.finish is None for progress in reports), "the long one was first and is not done yet"
    assert len(last(news_of_long).tokens) == 150


def test_what_nobody_waits_for_goes(model, dispatcher):
    row, news = make_row(model, tokens=150)
    dispatcher.submit([row])
    news.get(timeout=120)
    row.cancelled.set()
    deadline = time.monotonic() + 60
    while dispatcher.live and time.monotonic() < deadline:
        time.sleep(0.01)
    seen = [news.get() for _ in range(news.qsize())]
    assert dispatcher.live == 0 and all(progress.finish is None for progress in seen)
    other, news = make_row(model)
    other.cancelled.set()
    dispatcher.submit([other])
    time.sleep(0.2)
    assert news.empty(), "cancelled before it began"


def test_a_failure_is_that_of_its_batch(model, dispatcher):
    row, news = make_row(model)
    broken, news_of_broken = make_row(model, tokens=40)
    broken.item = Item("broken", ())
    dispatcher.submit([broken])
    assert last(news_of_broken).finish == "error"
    dispatcher.submit([row])
    assert last(news).finish == "length"


def test_a_full_queue_refuses(model, dispatcher):
    with pytest.raises(Busy, match="try again later"):
        dispatcher.submit([make_row(model)[0] for _ in range(11)])
    dispatcher.close()
    with pytest.raises(Busy):
        dispatcher.submit([make_row(model)[0]])


SAID = "how many red 0 1 2 yes no is there blue"


@pytest.mark.parametrize(
    "stop",
    [
        (),
        ("red",),  # one token
        ("0 1 2",),  # of three tokens
        ("many r",),  # it ends within a token
        ("2 yes no way",),  # begun and never completed
        ("no is there blue !", "yes no is there red"),
        ("blue",),  # the very end
        ("how",),  # nothing is left
    ],
)
@pytest.mark.parametrize("before", [None, (8, 9)])
def test_no_part_of_a_stop_string_is_ever_sent(model, stop, before):
    """Token by token: what has been sent once is the beginning of what there is in the end, and so are its tokens."""
    tokenizer = model.processor.llm
    tokens = [Token(token, -1.0, {}) for token in tokenizer.encode(SAID, add_special_tokens=False)]
    row = Row(Item("x", ()), make_options(model, {"max_new_tokens": len(tokens)}), stop, lambda progress: None, before)
    history = []
    for count in range(1, len(tokens) + 1):
        history.append(_progress(row, tokens[:count], tokenizer.decode))
        if history[-1].finish:
            break
    *earlier, last = history
    ends = [SAID.find(word) for word in stop if word in SAID]
    whole = SAID[: min(ends, default=len(SAID))]
    assert last.text.strip() == whole.strip() and last.finish == ("stop" if ends else "length")
    for progress in earlier:
        assert last.text.startswith(progress.text) and last.tokens[: len(progress.tokens)] == progress.tokens
    spelled = tokenizer.decode([token.id for token in last.tokens])
    assert spelled == whole.strip() and len(last.tokens) == len(whole.split())
