#!/usr/bin/env python3
"""How much of a set of preference pairs a bag of words explains: what a judge should at least learn of them.

    python benches/bag_of_words.py train.jsonl held_out.jsonl

Files as j1 data prepare writes them. A logistic regression on the difference of both replies, in words, pairs of words
and length, is fitted to four fifths of the pairs and asked about the rest, five folds, four times. Prints the share that is right, by
source and in all. Needs numpy.
"""

import collections
import json
import re
import sys

import numpy as np

WORDS, LEAST, STEPS, RATE, DECAY = 3000, 4, 300, 1.0, 0.01


def words(text):
    found = re.findall(r"[a-z']+", text.lower())
    return set(found) | {f"{a} {b}" for a, b in zip(found, found[1:])}


def features(pairs):
    """[pairs, words + 1]: 1 where the chosen reply alone has a word, -1 where the rejected one has."""
    replies = [[words(pair[side]) for side in ("chosen", "rejected")] for pair in pairs]
    counts = collections.Counter(word for both in replies for reply in both for word in reply)
    common = [word for word, count in counts.most_common(WORDS) if count >= LEAST]
    places = {word: place for place, word in enumerate(common)}
    x = np.zeros((len(pairs), len(places) + 1))
    for row, pair, both in zip(x, pairs, replies):
        for reply, sign in zip(both, (1, -1)):
            for place in (places[word] for word in reply if word in places):
                row[place] += sign
        row[-1] = np.tanh((len(pair["chosen"]) - len(pair["rejected"])) / 200)
    return x


def accuracy(pairs):
    x, draw, right = features(pairs), np.random.default_rng(0), []
    for _ in range(4):
        order = draw.permutation(len(pairs))
        for fold in range(5):
            test = order[fold::5]
            train = np.setdiff1d(order, test)
            w = np.zeros(x.shape[1])
            for _ in range(STEPS):
                p = 1 / (1 + np.exp(-x[train] @ w))
                w += RATE * (x[train].T @ (1 - p) / len(train) - DECAY * w)
            lead = x[test] @ w
            right.append(np.mean((lead > 0) + (lead == 0) / 2))
    return np.mean(right)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__.strip())
    pairs = [json.loads(line) for path in sys.argv[1:] for line in open(path)]
    by_source = collections.defaultdict(list)
    for pair in pairs:
        by_source[pair.get("source") or "no source"].append(pair)
    for source, of_source in [*sorted(by_source.items()), ("all", pairs)]:
        if len(of_source) >= 10:
            print(f"{100 * accuracy(of_source):5.1f} %  of {len(of_source):5}  {source}")


if __name__ == "__main__":
    main()
