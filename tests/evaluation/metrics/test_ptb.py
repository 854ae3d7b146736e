"""Words of captions against the lines that Stanford's PTBTokenizer 3.4.1 gives, with the marks that coco-caption drops."""

from __future__ import annotations

import pytest

from mmjax.evaluation.metrics.ptb import words

LINES = {
    "It's a dog's life, isn't it?": "it 's a dog 's life is n't it",
    "The U.S. team's 2nd try: 3.5 km (2.2 miles)!": "the u.s. team 's 2nd try 3.5 km -lrb- 2.2 miles -rrb-",
    "can't won't they're I'll": "ca n't wo n't they 're i 'll",
    'e-mail a 10-year-old boy\'s "toy" ...': "e-mail a 10-year-old boy 's toy",
    "He said 'hello' -- twice; 1,000 times": "he said hello twice 1,000 times",
    "mother-in-law's $5.99 coffee/tea": "mother-in-law 's $ 5.99 coffee/tea",
    "A man w/ a hat & a 50% off sign": "a man w / a hat & a 50 % off sign",
    "I cannot see what he's gonna do, lemme look": "i can not see what he 's gon na do lem me look",
    "'Tis the season; 'twas cold. Y'all couldn't've come": "'t is the season 't was cold y' all could n't 've come",
    "mr. smith and dr. jones met on main st. at 5 p.m. today.": "mr. smith and dr. jones met on main st. at 5 p.m. today",
    "A clock that reads 12:30pm, or 8:05, on Mt. Hood": "a clock that reads 12:30 pm or 8:05 on mt. hood",
    "sign says no. 5 and no parking": "sign says no. 5 and no parking",
    "5'10\" tall men in the '90s and the 1990's": "5 10 tall men in the '90s and the 1990 's",
    "[brackets] {braces} <b> 3x4 4x4": "-lsb- brackets -rsb- -lcb- braces -rcb- <b> 3x4 4x4",
    "it’s “double” ‘single’ café — naïve – cat…": "it 's double single café naïve cat",
    "hello!!! what??? wow!? no.. yes....": "hello !!! what ??? wow !? no yes",
    "word,word word;word word:word a--b a-b word- -word": "word word word word word word a b a-b word word",
    "AT&T R&B a&b black & white": "at&t r&b a & b black & white",
    "1st 20th 1980s 1,000.50 .5 -5 5-6 1/2 24/7 3D": "1st 20th 1980s 1,000.50 .5 -5 5-6 1/2 24/7 3d",
    "(left) a(b)c ((a)) [b]": "-lrb- left -rrb- a -lrb- b -rrb- c -lrb- -lrb- a -rrb- -rrb- -lsb- b -rsb-",
    "black/white and/or black / white c/o x/ y": "black/white and/or black / white c/o x / y",
    "a man wearing a t-shirt, jeans, and a hat...standing": "a man wearing a t-shirt jeans and a hat standing",
    "a woman on a court.he is playing www.foo.com img.jpg": "a woman on a court.he is playing www.foo.com img.jpg",
    "#1 # 5 #hashtag @user 45° £5 €6 5¢ US": "# 1 # 5 #hashtag @user 45 ° # 5 $ 6 5 cents us",
    "rock 'n' roll at 8 o'clock, ma'am, O'Brien's li'l dog": "rock 'n' roll at 8 o'clock ma'am o'brien 's li'l dog",
    "the boys' bikes, James' hat, runnin' down": "the boys bikes james hat runnin down",
    "a * b + c = d ** under_score _ ~": "a * b + c = d ** under_score _ ~",
    "mac'n'cheese Ph.D. etc. vs. Co. e.g. this": "mac 'n' cheese ph.d. etc. vs. co. e.g. this",
    '"Stop" he said, "don\'t!"': "stop he said do n't",
    "2 dogs(black and white)on grass half-eaten": "2 dogs -lrb- black and white -rrb- on grass half-eaten",
    "½ cup, ¼ full; vitamin d. and more": "1/2 cup 1/4 full vitamin d. and more",
}


@pytest.mark.parametrize("caption", LINES)
def test_words_are_those_of_the_java_tokenizer(caption):
    assert " ".join(words(caption)) == LINES[caption]


def test_newlines_are_spaces_and_nothing_has_no_words():
    assert words("a cat\non a\tmat.\n") == ["a", "cat", "on", "a", "mat"]
    assert words(" . ") == words("") == []
