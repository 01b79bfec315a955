//! Where the rows of a training batch lie, and which see which.

use kernels::{
    cpu::attention::{PAGE, Segment, Span, Tree},
    cuda::{AttentionPlan, BackwardPlan},
};

use crate::{
    ops::gather,
    tensor::{
        Tensor,
        device::{DeviceCell, Mirrored},
    },
};

/// How the rows of a training batch see each other: prompts, each followed by its completions, as a tree of what they
/// share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    tables: Vec<u32>,
    /// Where each row's keys and values go.
    slots: Mirrored<u32>,
    /// Rows of prefixes whose page is not full, and where each of those that continue them has its own copy.
    copied_rows: Mirrored<u32>,
    copied_slots: Mirrored<u32>,
    pages: u32,
    all: Queries,
    wanted: Queries,
    last: Path,
}

/// The rows that ask: all of them, or those whose results are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queries {
    rows: usize,
    spans: Vec<Span>,
    trees: Vec<Tree>,
    /// The same in the form that a GPU's kernels take.
    plan: DeviceCell<AttentionPlan>,
    backward_plan: DeviceCell<BackwardPlan>,
}

impl Queries {
    /// How many there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Runs of consecutive queries, whose tables lie in [`Layout::tables`].
    pub(crate) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// What the gradients are taken over.
    pub(crate) fn trees(&self) -> &[Tree] {
        &self.trees
    }

    pub(crate) fn plan(&self) -> &DeviceCell<AttentionPlan> {
        &self.plan
    }

    pub(crate) fn backward_plan(&self) -> &DeviceCell<BackwardPlan> {
        &self.backward_plan
    }

    /// Adds a segment of so many rows, the last of them with queries, at the page table `tables[table]`.
    fn push(
        &mut self,
        parent: Option<usize>,
        [start, rows, queries]: [usize; 3],
        table: std::ops::Range<usize>,
    ) {
        let first_position = start + rows - queries;
        self.spans.push(Span { first_row: self.rows, rows: queries, first_position, table });
        let tree = self.trees.last_mut().expect("a tree to add to");
        tree.segments.push(Segment { parent, rows, queries });
        self.rows += queries;
    }
}

/// The prompt that was pushed last.
#[derive(Clone, Debug, Default)]
struct Path {
    /// The row of each of its tokens.
    rows: Vec<usize>,
    /// Its pages.
    pages: Vec<u32>,
    /// Its segments in the last tree, and the position at which each ends.
    segments: Vec<(usize, usize)>,
}

/// Divides segment `index` after `rows` rows.
fn split(tree: &mut Tree, index: usize, rows: usize) {
    for segment in &mut tree.segments[index + 1..] {
        // What continued the whole continues the second half.
        segment.parent = segment.parent.map(|parent| parent + usize::from(parent >= index));
    }
    let whole = &mut tree.segments[index];
    let rest = whole.rows - rows;
    let queries = whole.queries.min(rest);
    *whole = Segment { rows, queries: whole.queries - queries, ..*whole };
    tree.segments.insert(index + 1, Segment { parent: Some(index), rows: rest, queries });
}

impl Layout {
    /// Adds a prompt and its completions, as rows one after the other. Of the prompt's tokens the first `shared` are
    /// those of the prompt before, and have no rows of their own.
    ///
    /// # Panics
    /// If the prompt before is shorter, or none is left for the prompt itself.
    pub(crate) fn push(&mut self, shared: usize, prompt: usize, completions: &[usize]) {
        assert!(shared <= self.last.rows.len() && shared < prompt, "{shared} shared of {prompt}");
        for queries in [&mut self.all, &mut self.wanted] {
            queries.plan.clear();
            queries.backward_plan.clear();
        }
        let parent = self.branch(shared);
        let prefix = std::mem::take(&mut self.last);
        let (segment, pages) = self.segment(parent, &prefix, [shared, prompt - shared, 1]);
        let own = self.rows() - (prompt - shared)..self.rows();
        let rows = prefix.rows[..shared].iter().copied().chain(own).collect();
        let mut segments = prefix.segments;
        segments.push((segment, prompt));
        let path = Path { rows, pages, segments };
        for &fed in completions {
            self.segment(Some(segment), &path, [prompt, fed, fed]);
        }
        self.last = path;
    }

    /// The segment that ends at position `shared` of the prompt before, made where there is none; `None` where nothing is
    /// shared and a tree begins.
    fn branch(&mut self, shared: usize) -> Option<usize> {
        let first_row = self.rows();
        let path = &mut self.last.segments;
        if shared == 0 {
            path.clear();
            for queries in [&mut self.all, &mut self.wanted] {
                let first_query = queries.rows;
                let tree = Tree { first_row, first_query, segments: Vec::new() };
                queries.trees.push(tree);
            }
            return None;
        }
        while path.len() > 1 && path[path.len() - 2].1 >= shared {
            path.pop();
        }
        let start = path.len().checked_sub(2).map_or(0, |before| path[before].1);
        let (segment, end) = path.last_mut().expect("a prompt before");
        if *end > shared {
            for queries in [&mut self.all, &mut self.wanted] {
                split(queries.trees.last_mut().expect("its tree"), *segment, shared - start);
            }
            *end = shared;
        }
        Some(*segment)
    }

    /// Adds a segment that continues the first `start` tokens of `prefix`, of whose rows the last `wanted` have results that
    /// are wanted. Returns its number in the tree, and its pages from the first on.
    fn segment(
        &mut self,
        parent: Option<usize>,
        prefix: &Path,
        [start, rows, wanted]: [usize; 3],
    ) -> (usize, Vec<u32>) {
        // Behind the pages that are full. The rest of the prefix is copied, as a fork of the cache does.
        let full = start / PAGE;
        let own = (start + rows).div_ceil(PAGE) - full;
        let pages: Vec<u32> =
            prefix.pages[..full].iter().copied().chain((self.pages..).take(own)).collect();
        self.pages += own as u32;
        let slot =
            |position: usize| pages[position / PAGE] * PAGE as u32 + (position % PAGE) as u32;
        if rows > 0 {
            let copied = full * PAGE..start;
            let of_rows = prefix.rows[copied.clone()].iter().map(|&row| row as u32);
            self.copied_rows.change().extend(of_rows);
            self.copied_slots.change().extend(copied.map(slot));
        }
        self.slots.change().extend((start..start + rows).map(slot));
        let table = self.tables.len()..self.tables.len() + pages.len();
        self.tables.extend(&pages);
        let tree = self.all.trees.last().expect("a tree to add to");
        let segment = tree.segments.len();
        self.all.push(parent, [start, rows, rows], table.clone());
        self.wanted.push(parent, [start, rows, wanted], table);
        (segment, pages)
    }

    /// Rows of keys and values: every one asks in all layers but the last.
    pub(crate) fn rows(&self) -> usize {
        self.all.rows
    }

    /// The rows that ask: all, or of each prompt the last, and those of completions.
    pub(crate) fn queries(&self, wanted: bool) -> &Queries {
        if wanted { &self.wanted } else { &self.all }
    }

    /// Page tables of all spans, one after the other.
    pub(crate) fn tables(&self) -> &[u32] {
        &self.tables
    }

    /// Where each row's keys and values go: page·PAGE + place in the page.
    pub(crate) fn slots(&self) -> &Mirrored<u32> {
        &self.slots
    }

    /// Pages that hold all keys.
    pub(crate) fn pages(&self) -> usize {
        self.pages as usize
    }

    /// The rows of k and v that what continues them has copies of, and where these go, if any.
    pub(crate) fn copied(&self, kv: [&Tensor; 2]) -> Option<([Tensor; 2], &Mirrored<u32>)> {
        let is_any = !self.copied_rows.is_empty();
        is_any.then(|| (kv.map(|x| gather::forward(x, &self.copied_rows)), &self.copied_slots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(tree: &Tree) -> Vec<(Option<usize>, usize, usize)> {
        let of = |segment: &Segment| (segment.parent, segment.rows, segment.queries);
        tree.segments.iter().map(of).collect()
    }

    /// Two conversations under a template; the first in both orders.
    #[test]
    fn prompts_that_begin_alike_become_a_tree() {
        let mut layout = Layout::default();
        layout.push(0, 100, &[7, 0]);
        layout.push(90, 95, &[3]);
        layout.push(40, 60, &[2]);
        layout.push(40, 41, &[1]);
        layout.push(0, 5, &[4]);
        let all = layout.queries(false);
        let [first, second] = all.trees() else { panic!("two trees: {:?}", all.trees()) };
        assert_eq!(
            segments(first),
            [
                (None, 40, 40),
                (Some(0), 50, 50),
                (Some(1), 10, 10),
                (Some(2), 7, 7),
                (Some(2), 0, 0),
                (Some(1), 5, 5),
                (Some(5), 3, 3),
                (Some(0), 20, 20),
                (Some(7), 2, 2),
                (Some(0), 1, 1),
                (Some(9), 1, 1),
            ]
        );
        assert_eq!(segments(second), [(None, 5, 5), (Some(0), 4, 4)]);
        assert_eq!((first.first_row, second.first_row, layout.rows()), (0, 139, 148));

        let wanted = layout.queries(true);
        let queries: Vec<usize> = wanted.trees()[0].segments.iter().map(|s| s.queries).collect();
        assert_eq!(queries, [0, 0, 1, 7, 0, 1, 3, 1, 2, 1, 1]);
        assert_eq!((wanted.trees()[1].first_query, wanted.rows()), (17, 22));
        let span = &wanted.spans()[6];
        assert_eq!((span.first_row, span.rows, span.first_position), (13, 2, 60));
        // 90 tokens fill two pages of 32; the other 26 are copied for the second prompt, as are 4 of the 100 and 31 of
        // the 95 for completions, and so on.
        assert_eq!(layout.copied_rows.len(), 4 + 26 + 31 + 8 + 28 + 8 + 9 + 5);
    }
}
