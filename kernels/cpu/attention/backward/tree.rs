//! Sequences that share what they begin with, and how tasks share them out.

use std::ops::Range;

/// Sequences that share what they begin with (a template, a conversation, a prompt and its completions). Each segment
/// sees its ancestors and itself. Keys lie segment by segment, depth first: after a segment come all that continue it.
/// So do queries, of which a segment has those of its last rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Row of the first key.
    pub first_row: usize,
    /// Row of the first query.
    pub first_query: usize,
    /// The segments; the first is what all begin with.
    pub segments: Vec<Segment>,
}

/// Consecutive tokens of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The segment that it continues: one before it. `None` for the first alone.
    pub parent: Option<usize>,
    /// Tokens: rows of keys and values.
    pub rows: usize,
    /// How many of them, the last, have a query. The others only serve as keys and values.
    pub queries: usize,
}

/// Where a segment of a [`Tree`] lies, counted from the tree's first key and first query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its keys.
    pub(crate) rows: Range<usize>,
    /// Its queries.
    pub(crate) queries: Range<usize>,
    /// Where the queries of all that continue it end. Those from `queries.start` on see it.
    pub(crate) end: usize,
}

impl Tree {
    /// A prompt and its branches, every row with a query.
    pub fn of_prompt(first_row: usize, prompt: usize, branches: &[usize]) -> Tree {
        let segment = |parent, rows| Segment { parent, rows, queries: rows };
        let branches = branches.iter().map(|&rows| segment(Some(0), rows));
        let segments = std::iter::once(segment(None, prompt)).chain(branches).collect();
        Tree { first_row, first_query: first_row, segments }
    }

    /// Number of keys.
    ///
    /// # Panics
    /// If they cannot be counted: a sum that wrapped would let trees overlap.
    pub fn rows(&self) -> usize {
        let rows = self.segments.iter().try_fold(0usize, |sum, of| sum.checked_add(of.rows));
        rows.expect("rows of a tree that can be counted")
    }

    /// Number of queries.
    pub fn queries(&self) -> usize {
        let queries = self.segments.iter().try_fold(0usize, |sum, of| sum.checked_add(of.queries));
        queries.expect("rows of a tree that can be counted")
    }

    /// The segments that segment `index` continues, from the first on.
    pub(crate) fn ancestors(&self, index: usize) -> Vec<usize> {
        let parent = |index: usize| self.segments[index].parent;
        let mut all: Vec<usize> =
            std::iter::successors(parent(index), |&index| parent(index)).collect();
        all.reverse();
        all
    }

    /// Where the segments lie.
    ///
    /// # Panics
    /// If the segments are not in the order that [`Tree`] says, or one has more queries than rows.
    pub(crate) fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::with_capacity(self.segments.len());
        let (mut row, mut query) = (0, 0);
        // The segments that the next one may continue.
        let mut open: Vec<usize> = Vec::new();
        for (index, &Segment { parent, rows, queries }) in self.segments.iter().enumerate() {
            assert_eq!(parent.is_none(), index == 0, "the first segment alone has no parent");
            assert!(queries <= rows, "{queries} queries of {rows} rows");
            while open.last().copied() != parent {
                let closed = open.pop().expect("segments lie depth first");
                places[closed].end = query;
            }
            open.push(index);
            places.push(Place { rows: row..row + rows, queries: query..query + queries, end: 0 });
            row += rows;
            query += queries;
        }
        open.into_iter().for_each(|index| places[index].end = query);
        places
    }
}

/// Asserts that the rows of trees ascend, exist and do not overlap.
pub(crate) fn check(trees: &[Tree], rows: usize, queries: usize) {
    let (mut row, mut query) = (0, 0);
    let end = |first: usize, count: usize| {
        first.checked_add(count).expect("rows of trees that can be counted")
    };
    for tree in trees {
        assert!(row <= tree.first_row && query <= tree.first_query, "rows of trees overlap");
        row = end(tree.first_row, tree.rows());
        query = end(tree.first_query, tree.queries());
    }
    assert!(row <= rows, "trees have {row} rows of {rows}");
    assert!(query <= queries, "trees have {query} queries of {queries}");
}

/// Keys of a part, from which on the next segment begins another.
const ENOUGH: usize = 1024;

/// What a task takes of a tree: the queries of consecutive segments, and all keys that these see.
pub(super) struct Part {
    /// The runs of keys, in the order of rows: what the part's segments continue, then themselves.
    pub(super) runs: Vec<Run>,
    /// How many of the runs belong to other parts. Gradients of their keys are sums over parts.
    pub(super) shared: usize,
    /// Rows of the shared runs of the parts before.
    pub(super) sums_before: usize,
}

/// A segment as a part sees it.
pub(super) struct Run {
    /// Rows of its keys.
    pub(super) keys: Range<usize>,
    /// Rows of its queries; none where it belongs to another part.
    pub(super) queries: Range<usize>,
    /// The part's runs that it continues.
    pub(super) seen: Vec<usize>,
}

/// Keys that a block of queries meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    /// The first of them.
    pub(super) first: usize,
    pub(super) count: usize,
    /// How many the block's first row sees (none if negative, all if more); every next row sees one more.
    pub(super) visible: isize,
}

impl Part {
    /// Divides the trees among tasks. It depends on nothing else, and neither does a bit of the gradients.
    pub(super) fn all(trees: &[Tree]) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut sums_before = 0;
        for tree in trees {
            let places = tree.places();
            let mut first = 0;
            while first < places.len() {
                let full =
                    |index: usize| places[index].rows.end - places[first].rows.start >= ENOUGH;
                let last = (first..places.len()).find(|&index| full(index));
                let end = last.map_or(places.len(), |last| last + 1);
                let part = Part { sums_before, ..Part::of(tree, &places, first..end) };
                first = end;
                sums_before += part.shared_rows();
                parts.push(part);
            }
        }
        parts
    }

    fn of(tree: &Tree, places: &[Place], segments: Range<usize>) -> Part {
        // What a later segment of the part continues is in the part or continued by the first as well: they lie depth
        // first.
        let shared = tree.ancestors(segments.start);
        let run_of = |segment: usize| match segment.checked_sub(segments.start) {
            Some(own) => shared.len() + own,
            None => shared.iter().position(|&index| index == segment).expect("continued by all"),
        };
        let run = |segment: usize| {
            let at = |range: &Range<usize>, first: usize| first + range.start..first + range.end;
            let own = segments.contains(&segment);
            let none = Range::default();
            Run {
                keys: at(&places[segment].rows, tree.first_row),
                queries: at(if own { &places[segment].queries } else { &none }, tree.first_query),
                seen: match own {
                    true => tree.ancestors(segment).into_iter().map(run_of).collect(),
                    false => Vec::new(),
                },
            }
        };
        let runs = shared.iter().copied().chain(segments.clone()).map(run).collect();
        Part { runs, shared: shared.len(), sums_before: 0 }
    }

    /// Keys of its runs, each counted as `round` makes it.
    pub(super) fn keys(&self, round: impl Fn(usize) -> usize) -> usize {
        self.runs.iter().map(|run| round(run.keys.len())).sum()
    }

    /// Where the keys of each run lie, one after the other, each as long as `round` makes it.
    pub(super) fn starts(&self, round: impl Fn(usize) -> usize) -> Vec<usize> {
        let lengths = self.runs.iter().map(|run| round(run.keys.len()));
        lengths.scan(0, |next, len| Some(std::mem::replace(next, *next + len))).collect()
    }

    /// The keys that `queries` of run `run` see, counted from its first, in blocks of at most `most`. `starts` says where the keys of each run lie.
    pub(super) fn blocks<'p>(
        &'p self,
        run: usize,
        queries: Range<usize>,
        starts: &'p [usize],
        most: usize,
    ) -> impl Iterator<Item = Keys> + 'p {
        let Run { keys, queries: all, seen } = &self.runs[run];
        // Keys before that of the first query of the block.
        let before = keys.len() - all.len() + queries.start;
        let own = before + queries.len();
        let of_run = move |run: usize, len: usize, visible: Option<usize>| {
            (0..len).step_by(most).map(move |key| {
                let count = most.min(len - key);
                let visible =
                    visible.map_or(count as isize, |visible| visible as isize - key as isize);
                Keys { first: starts[run] + key, count, visible }
            })
        };
        let seen = seen.iter().flat_map(move |&run| of_run(run, self.runs[run].keys.len(), None));
        seen.chain(of_run(run, own, Some(before + 1)))
    }

    /// Keys that belong to other parts.
    pub(super) fn shared_rows(&self) -> usize {
        self.runs[..self.shared].iter().map(|run| run.keys.len()).sum()
    }

    /// Rows of the keys that belong to other parts, in order.
    pub(super) fn shared_keys(&self) -> impl Iterator<Item = usize> + '_ {
        self.runs[..self.shared].iter().flat_map(|run| run.keys.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(segments: &[(Option<usize>, usize, usize)]) -> Tree {
        let segment = |&(parent, rows, queries)| Segment { parent, rows, queries };
        Tree { first_row: 10, first_query: 3, segments: segments.iter().map(segment).collect() }
    }

    #[test]
    fn places_by_hand() {
        // 0 ── 1 ── 2
        //  │   └─── 3
        //  └── 4
        let tree = tree(&[
            (None, 5, 0),
            (Some(0), 4, 1),
            (Some(1), 3, 3),
            (Some(1), 2, 2),
            (Some(0), 6, 6),
        ]);
        let place = |rows, queries, end| Place { rows, queries, end };
        assert_eq!(
            tree.places(),
            [
                place(0..5, 0..0, 12),
                place(5..9, 0..1, 6),
                place(9..12, 1..4, 4),
                place(12..14, 4..6, 6),
                place(14..20, 6..12, 12),
            ]
        );
        assert_eq!((tree.rows(), tree.queries()), (20, 12));
        assert_eq!(tree.ancestors(3), [0, 1]);
    }

    #[test]
    fn parts_have_what_their_queries_see() {
        let tree = tree(&[
            (None, 600, 600),
            (Some(0), 500, 500),
            (Some(1), 7, 7),
            (Some(1), 8, 8),
            (Some(0), 1020, 1020),
        ]);
        let parts = Part::all(&[tree]);
        let shown: Vec<_> = parts
            .iter()
            .map(|part| {
                let runs = part.runs.iter();
                let runs =
                    runs.map(|run| (run.keys.clone(), run.queries.clone(), run.seen.clone()));
                (part.shared, part.sums_before, runs.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(
            shown,
            [
                (0, 0, vec![(10..610, 3..603, vec![]), (610..1110, 603..1103, vec![0])]),
                (
                    2,
                    0,
                    vec![
                        (10..610, 3..3, vec![]),
                        (610..1110, 3..3, vec![]),
                        (1110..1117, 1103..1110, vec![0, 1]),
                        (1117..1125, 1110..1118, vec![0, 1]),
                        (1125..2145, 1118..2138, vec![0]),
                    ]
                ),
            ]
        );
        assert_eq!((parts[1].shared_rows(), parts[1].keys(|rows| rows)), (1100, 2135));
        assert_eq!(parts[1].shared_keys().nth(600), Some(610));
        let starts = parts[1].starts(|rows| rows.next_multiple_of(32));
        assert_eq!(starts, [0, 608, 608 + 512, 608 + 512 + 32, 608 + 512 + 64]);
    }

    #[test]
    fn blocks_of_keys_by_hand() {
        // Five keys before a prompt of four, whose last two have queries.
        let tree = tree(&[(None, 5, 0), (Some(0), 4, 2)]);
        let [part] = &Part::all(&[tree])[..] else { panic!("one part") };
        let of = |queries| {
            let blocks = part.blocks(1, queries, &[0, 32], 3);
            blocks.map(|Keys { first, count, visible }| (first, count, visible)).collect::<Vec<_>>()
        };
        // The first sees all but its follower's, whose key is the block's last.
        assert_eq!(of(0..2), [(0, 3, 3), (3, 2, 2), (32, 3, 3), (35, 1, 0)]);
        assert_eq!(of(1..2), [(0, 3, 3), (3, 2, 2), (32, 3, 4), (35, 1, 1)]);
    }

    #[test]
    #[should_panic = "depth first"]
    fn a_segment_behind_what_it_continues_is_refused() {
        tree(&[(None, 1, 1), (Some(0), 1, 1), (Some(0), 1, 1), (Some(1), 1, 1)]).places();
    }

    #[test]
    #[should_panic = "the first segment alone"]
    fn a_second_beginning_is_refused() {
        tree(&[(None, 1, 1), (None, 1, 1)]).places();
    }
}
